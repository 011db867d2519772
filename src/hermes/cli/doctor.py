"""`hermes doctor`: whether this machine can run Hermes, and how to mend what it lacks."""

import typer
from rich.text import Text

from hermes.broker.machine import Result, State, examine
from hermes.cli.console import FAILED, ConfigOption, JsonOption, SetOption, console, load_settings, print_json, reporting, visible

_STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red"}


@reporting()
def doctor(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check the machine for the configured engine and say how to mend what it lacks (exit code 1 when something is)."""
    results = examine(load_settings(config, overrides))
    failed = sum(result.state is State.FAILED for result in results)
    if as_json:
        print_json([_fields(result) for result in results])
    else:
        for result in results:
            _show(result)
        console.print(f"\n{failed} of {len(results)} checks failed" if failed else "\nThis machine is ready.")
    if failed:
        raise typer.Exit(FAILED)


def _show(result: Result) -> None:
    line = Text()
    line.append(f"{result.state.value:<8}", style=_STYLES[result.state])
    line.append(f" {result.name:<16} {visible(result.detail)}")
    console.print(line, soft_wrap=True)
    if result.fix and result.state is not State.OK:
        console.print(f"{'':25} → {visible(result.fix)}", soft_wrap=True)


def _fields(result: Result) -> dict[str, str]:
    return {"name": result.name, "state": result.state.value, "detail": result.detail, "fix": result.fix}
