"""`hermes sessions`: what attackers did, from the journal."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.cells import cell_len, set_cell_size

from hermes.cli.console import (
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.cli.export import export
from hermes.cli.privileges import opened_journal
from hermes.cli.replay import replay
from hermes.cli.story import Attempt, Channel, Story, tell
from hermes.cli.timeline import timeline
from hermes.cli.words import clock, short, size, span, when
from hermes.config import Settings
from hermes.store import Session

TABLE_SESSIONS = 50
JSON_SESSIONS = 1000
PIPED_WIDTH = 160
"""Columns of the table when it goes to a file or another program."""
SHOWN_LINES = 500
"""Lines of one list that `show` prints at most; `--json` gives all."""

app = typer.Typer(no_args_is_help=True, help="List, show, replay and export what attackers did.")
app.command()(replay)
app.command()(timeline)
app.command()(export)


@app.command("list")
@reporting()
def list_(
    limit: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help=f"Sessions at most: {TABLE_SESSIONS}, or {JSON_SESSIONS} with --json."),
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Newest sessions to leave out.")] = 0,
    user: Annotated[str | None, typer.Option("--user", help="Only sessions of this user name.")] = None,
    ip: Annotated[str | None, typer.Option("--ip", help="Only sessions from this address.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only those started since: `90m`, `7d`, `2026-01-31`, `2026-01-31T12:00Z`.")
    ] = None,
    active: Annotated[bool | None, typer.Option("--active/--ended", help="Only sessions that go on, or that are over.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sessions, newest first. Times are UTC."""
    started = None if since is None else when(since, datetime.now(UTC))
    count = limit or (JSON_SESSIONS if as_json else TABLE_SESSIONS)
    with opened_journal(load_settings(config, overrides)) as journal:
        sessions = journal.list_sessions(count, offset, username=user, source_ip=ip, since=started, active=active)
    if as_json:
        print_json(msgspec.to_builtins(sessions))
    elif not sessions:
        console.print("No sessions.")
    else:
        for line in _table(sessions, console.width if console.is_terminal else PIPED_WIDTH):
            console.print(line, soft_wrap=True)
        if len(sessions) == count:
            console.print(f"There may be more: --offset {offset + count}, or a larger --limit.", soft_wrap=True)


@app.command()
@reporting()
def show(
    session: Annotated[str, typer.Argument(metavar="ID", help="Session id, or a beginning that only one session has.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one session: who, from where, with which credentials, and what was done in each channel. Times are UTC."""
    settings = load_settings(config, overrides)
    with opened_journal(settings) as journal:
        found = journal.get_session(session)
        events = journal.session_events(found.session_id)
    story = tell(events)
    if as_json:
        print_json(
            {
                **msgspec.to_builtins(found),
                "waited": story.waited,
                "authentication": msgspec.to_builtins(story.attempts),
                "channel_list": [
                    {**msgspec.to_builtins(channel), "recording_path": _recording(settings, channel)}
                    for channel in story.channels
                ],
                "events": msgspec.to_builtins(events),
            }
        )
        return
    for line in (*_facts(found, story), *_attempts(story.attempts), *_channels(settings, story.channels), *_rest(story)):
        console.print(line, soft_wrap=True)


def _duration(session: Session) -> str:
    return "active" if session.ended is None else span((session.ended - session.started).total_seconds())


def _table(sessions: list[Session], width: int) -> Iterable[str]:
    """Yield a line a session; the commands take what is left of `width` columns, or 20 where nothing is left."""
    rows = [("SESSION", "STARTED (UTC)", "LASTED", "USER", "FROM", "CH", "COMMANDS")]
    for session in sessions:
        shown = "; ".join(short(command, 200) for command in session.commands[:3])
        more = session.command_count - min(len(session.commands), 3)
        rows.append(
            (
                short(session.session_id[:12]),
                f"{session.started:%Y-%m-%d %H:%M}",
                "lost" if session.cause == "lost" else _duration(session),
                set_cell_size(short(session.username, 16), 16).rstrip(),
                short(session.source_ip, 45),
                str(session.channels),
                (f"(+{more}) " if more else "") + shown,
            )
        )
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    left = max(20, width - sum(widths[:-1]) - 2 * (len(widths) - 1))
    for row in rows:
        cells = [set_cell_size(cell, size) for cell, size in zip(row[:-1], widths[:-1], strict=True)]
        last = row[-1] if cell_len(row[-1]) <= left else set_cell_size(row[-1], left - 1) + "…"
        yield "  ".join((*cells, last)).rstrip()


def _facts(session: Session, story: Story) -> Iterable[str]:
    ended = "active" if session.ended is None else f"{session.ended:%Y-%m-%d %H:%M:%S} UTC, after {_duration(session)}"
    container = "none"
    if session.container_id is not None:
        made_by = f"{short(session.engine or '?')}, {short(session.image or '?')}"
        waited = "" if story.waited is None else f", waited {story.waited * 1000:.0f} ms"
        container = f"{short(session.container_id)} ({made_by}{waited})"
    yield f"Session {short(session.session_id)}"
    for name, value in (
        ("user", short(session.username)),
        ("from", f"{short(session.source_ip)} port {session.source_port}"),
        ("client", short(session.client_version)),
        ("HASSH", short(story.hassh or "")),
        ("started", f"{session.started:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", ended),
        ("cause", short(session.cause or "")),
        ("container", container),
        ("sensor", short(session.sensor)),
        ("traffic", f"{size(session.bytes_in)} in, {size(session.bytes_out)} out" if session.ended is not None else ""),
    ):
        if value:
            yield f"  {name:<10} {value}"


def _attempts(attempts: list[Attempt]) -> Iterable[str]:
    yield ""
    yield "Authentication"
    lines = []
    for attempt in attempts:
        verdict = "accepted" if attempt.accepted else "refused"
        secrets = "".join(f"  {short(name, 80)} {short(value)}" for name, value in attempt.secrets())
        lines.append(
            f"  {clock(attempt.time)}  {short(attempt.method)}  {short(attempt.username)}{secrets}  "
            f"{verdict} ({short(attempt.rule)})"
        )
    yield from _bounded(lines)


def _channels(settings: Settings, channels: list[Channel]) -> Iterable[str]:
    for channel in channels:
        yield ""
        yield f"Channel {channel.channel}: {_what(channel)}"
        yield f"  opened     {clock(channel.opened)}" + ("" if channel.duration is None else f", for {span(channel.duration)}")
        if (path := _recording(settings, channel)) is not None:
            yield f"  recording  {visible(path)}"
        if channel.failure is not None:
            yield f"  failed     {short(channel.failure)}"
        if channel.closed is not None:
            yield f"  closed     {clock(channel.closed)}, {_ending(channel)}"
            yield f"  traffic    {size(channel.bytes_in)} in, {size(channel.bytes_out)} out"
        if channel.inputs:
            yield "  input"
            yield from _bounded(
                f"    {clock(line.time)}  {short(line.line)}{'…' if line.truncated else ''}" for line in channel.inputs
            )


def _what(channel: Channel) -> str:
    terminal = "" if channel.term is None else f" on {short(channel.term, 40)} {channel.width}x{channel.height}"
    command = "" if channel.command is None else f" {short(channel.command)}"
    return f"{short(channel.kind or 'nothing started')}{command}{terminal}"


def _ending(channel: Channel) -> str:
    if channel.exit_signal is not None:
        return f"signal {short(channel.exit_signal)}"
    return "no exit status" if channel.exit_status is None else f"exit status {channel.exit_status}"


def _recording(settings: Settings, channel: Channel) -> str | None:
    return None if channel.recording is None else str(Path(settings.recordings_dir, channel.recording))


def _rest(story: Story) -> Iterable[str]:
    if story.rest:
        yield ""
        yield "Also"
        lines = []
        for event in story.rest:
            hidden = ("event", "connection_id", "session_id")
            fields = "  ".join(
                f"{short(name, 40)}={short(str(value), 120)}" for name, value in event.body.items() if name not in hidden
            )
            lines.append(f"  {clock(event.time)}  {short(event.event)}  {fields}")
        yield from _bounded(lines)


def _bounded(lines: Iterable[str]) -> Iterable[str]:
    left = 0
    for number, line in enumerate(lines):
        if number < SHOWN_LINES:
            yield line
        else:
            left += 1
    if left:
        yield f"    … and {left} more; --json gives all"
