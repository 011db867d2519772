"""`hermes verify`: attack a box as its attacker would, and say what holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from hermes.cli.console import (
    FAILED,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    err,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.config import Settings

if TYPE_CHECKING:
    from hermes.broker.verify.report import Report, Verdict

INTERRUPTED = 130


@reporting()
def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Only what `hermes up` tries at every start.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Keep the report, as JSON, in a file.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a box made as configured, from inside, and report what holds (exit code 1 when something gets through).

    It can run beside a sensor on the same data directory, harms neither it nor the machine, and leaves nothing behind.
    """
    settings = load_settings(config, overrides)
    report = _run(settings, quick=quick, as_json=as_json)
    data = msgspec.to_builtins(report)
    if output is not None:
        try:
            output.write_bytes(msgspec.json.format(msgspec.json.encode(data)) + b"\n")
        except OSError as error:
            fail(f"the report cannot be written to {output}: {error.strerror}")
    if as_json:
        print_json(data)
    else:
        _summarise(report)
    if not report.held:
        raise typer.Exit(FAILED)


def _run(settings: Settings, *, quick: bool, as_json: bool) -> "Report":
    from hermes import log
    from hermes.broker.verify.alone import Interrupted
    from hermes.broker.verify.alone import verify as attack

    log.configure(settings.logging, process="verify")
    try:
        return attack(
            settings,
            quick=quick,
            say=lambda line: err.print(f"hermes: {visible(line)}", soft_wrap=True),
            progress=(lambda verdict: None) if as_json else _show,
        )
    except Interrupted:
        fail("stopped; nothing is left behind", INTERRUPTED)


def _show(verdict: "Verdict") -> None:
    line = Text()
    line.append("held    " if verdict.held else "FAILED  ", style="green" if verdict.held else "bold red")
    line.append(f" {verdict.name:<24} {visible(verdict.detail)}")
    console.print(line, soft_wrap=True)


def _summarise(report: "Report") -> None:
    for warning in report.warnings:
        console.print(Text(f"warning  {visible(warning)}", style="yellow"), soft_wrap=True)
    outcome = "all held" if report.held else f"{len(report.failed)} FAILED"
    console.print(f"\n{len(report.probes)} attacks in {report.seconds:.1f} s: {outcome}")
    runtime = f" ({report.runtime})" if report.runtime else ""
    console.print(f"true for: engine {report.engine}{runtime}, Linux {report.kernel} {report.machine}", soft_wrap=True)
    image = f"{visible(report.image)} {report.image_digest[:12]}".strip()
    console.print(f"          image {image}, policy {report.policy[:12]}, hermes {report.hermes}", soft_wrap=True)
