"""`hermes outputs`: where events go, how far each output came, and whether it works."""

import asyncio
import os
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from hermes.cli.console import (
    USAGE,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.cli.privileges import become_owner
from hermes.config import Settings
from hermes.config.outputs import Output
from hermes.store.cursors import Standing, standing

app = typer.Typer(no_args_is_help=True, help="Show where events go besides the journal, and test it.")


@app.command("list")
@reporting()
def list_(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List the outputs: how far each came, how many events it has yet to look at, and what is wrong with it."""
    settings = load_settings(config, overrides)
    become_owner(settings)
    found = standing(settings.journal_path, settings.outputs_dir, [it.name for it in settings.outputs])
    pairs = list(zip(settings.outputs, found, strict=True))
    if as_json:
        print_json([_plain(*it) for it in pairs])
    elif not pairs:
        console.print("No outputs: set `outputs` in the configuration.")
    for output, it in [] if as_json else pairs:
        console.print(f"{output.name:<16} {output.type:<10} {_state(it)}", soft_wrap=True)


@app.command("test")
@reporting()
def send_test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the output.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one event, `output.tested`, through an output, and say whether it was taken. Its place in the journal stays."""
    settings = load_settings(config, overrides)
    output = next((it for it in settings.outputs if it.name == name), None)
    if output is None:
        fail(f"there is no output {name}: {', '.join(it.name for it in settings.outputs) or 'there is none at all'}", USAGE)
    began = time.monotonic()
    try:
        asyncio.run(_send(settings, output))
    except OSError as error:
        fail(f"{name}: {error}")
    seconds = time.monotonic() - began
    if as_json:
        print_json({"name": name, "delivered": True, "seconds": round(seconds, 3)})
    else:
        console.print(f"{name}: delivered in {seconds * 1000:.0f} ms")


async def _send(settings: Settings, output: Output) -> None:
    """Raises HermesError or OSError where it is not delivered."""
    from hermes.outputs.making import make  # with all the libraries of all sinks, which no other command needs
    from hermes.outputs.sink import TEST, Record

    sink = make(output, settings, os.environ, alone=False)
    become_owner(settings)
    record = Record(
        event_id=f"test:{uuid.uuid4().hex}", id=0, time=datetime.now(UTC), sensor=settings.sensor.name, event=TEST,
        connection_id=None, session_id=None, body={"event": TEST, "connection_id": None, "session_id": None},
    )  # fmt: skip
    try:
        await sink.send([record])
    finally:
        await sink.close()


def _plain(output: Output, it: Standing) -> dict[str, Any]:
    cursor = it.cursor
    since = None if cursor is None or cursor.failing_since is None else datetime.fromtimestamp(cursor.failing_since, UTC)
    return {
        "name": output.name,
        "type": output.type,
        "journal": None if cursor is None else cursor.journal,
        "id": None if cursor is None else cursor.id,
        "lag": it.lag,
        "delivered": 0 if cursor is None else cursor.delivered,
        "missed": 0 if cursor is None else cursor.missed,
        "failing_since": None if since is None else since.isoformat(),
        "last_error": it.trouble or ("" if cursor is None else cursor.error),
    }


def _state(it: Standing) -> str:
    if it.trouble:
        return visible(it.trouble)
    if it.cursor is None:
        return "has not begun"
    lag = "lag unknown" if it.lag is None else f"{it.lag} events behind" if it.lag else "up to date"
    parts = [lag, f"{it.cursor.delivered} delivered", f"up to event {it.cursor.id}"]
    if it.cursor.missed:
        parts.append(f"MISSED {it.cursor.missed}: they were removed from the journal before")
    if it.cursor.failing_since is not None:
        since = datetime.fromtimestamp(it.cursor.failing_since, UTC)
        parts.append(f"FAILING since {since:%Y-%m-%d %H:%M:%S} UTC: {visible(it.cursor.error)}")
    return ", ".join(parts)
