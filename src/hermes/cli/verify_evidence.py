"""`hermes verify-evidence`: whether what is kept, or was exported, is what was sealed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from hermes.cli.console import FAILED, ConfigOption, JsonOption, SetOption, console, fail, load_settings, print_json, reporting
from hermes.cli.privileges import become_owner
from hermes.cli.words import short
from hermes.evidence.bundle_check import BundleCheck
from hermes.evidence.findings import Finding, State, Summary
from hermes.evidence.verification import Verification

LISTED = 10_000
"""Findings of each kind that are listed at most; all are counted."""
_STYLES = {State.REMOVED: "dim", State.NOTE: "yellow"}


@reporting()
def check(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A file that `hermes sessions export` made; by default all that is kept."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="The head of the chain as it was noted once; it must still be in it.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recordings, events and artifacts against the chain of manifests (exit code 1 when something is not as it was sealed).

    It reads everything that is kept, changes nothing, and can run beside a sensor. Note elsewhere the head that it prints: with
    --head it tells later whether the chain was cut or made anew.
    """
    look = _of_bundle(bundle, head) if bundle is not None else _of_sensor(config, overrides, head)
    counts = dict.fromkeys(State, 0)
    listed: list[Finding] = []
    try:
        for finding in look.findings():
            counts[finding.state] += 1
            if counts[finding.state] > LISTED:
                continue
            if as_json:
                listed.append(finding)
            else:
                console.print(_line(finding), soft_wrap=True)
    except OSError as error:
        fail(f"the evidence cannot be read: {error.strerror}: {error.filename}")
    wrong = sum(count for state, count in counts.items() if state.is_wrong)
    if as_json:
        print_json(
            {
                "ok": not wrong,
                **msgspec.to_builtins(look.summary),
                "counts": {state.value: count for state, count in counts.items()},
                "findings": msgspec.to_builtins(listed),
            }
        )
    else:
        for line in _told(look.summary, wrong):
            console.print(line, soft_wrap=True)
    if wrong:
        raise typer.Exit(FAILED)


def _of_sensor(config: Path | None, overrides: list[str] | None, head: str | None) -> Verification:
    settings = load_settings(config, overrides)
    become_owner(settings)
    return Verification(settings.journal_path, settings.recordings_dir, settings.artifacts_dir, head=head)


def _of_bundle(bundle: Path, head: str | None) -> BundleCheck:
    if head is not None:
        fail("--head is for the chain that a sensor keeps", 2)
    return BundleCheck(bundle)


def _line(finding: Finding) -> Text:
    line = Text()
    line.append(f"{finding.state.value:<8}", style=_STYLES.get(finding.state, "bold red"))
    line.append(f" {finding.what:<10} {short(finding.which)}: {short(finding.detail)}")
    return line


def _told(summary: Summary, wrong: int) -> Iterator[str]:
    read = [f"{summary.manifests} manifests", f"the events of {summary.sessions} sessions"]
    yield ", ".join([*read, f"{summary.files} files", f"{summary.artifacts} artifacts"]) + " read."
    if summary.events:
        told = [f"{summary.events} events"]
        told += [f"{summary.removed_events} removed by retention"] if summary.removed_events else []
        told += [f"{summary.unproven} beside those, not provable any more"] if summary.unproven else []
        told += [f"{summary.unsealed} not sealed yet"] if summary.unsealed else []
        yield ", ".join(told) + "."
    if summary.head:
        yield f"head {summary.head} (number {summary.sequence})"
    yield "Everything is as it was sealed." if not wrong else f"{wrong} things are NOT as they were sealed."
