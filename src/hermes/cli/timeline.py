"""`hermes sessions timeline`: everything of a session in one order on one clock."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from hermes.cli.console import ConfigOption, JsonOption, SetOption, load_settings, reporting
from hermes.cli.privileges import opened_journal
from hermes.cli.words import clock, short, size, span, when
from hermes.evidence.sources import timeline as of_session
from hermes.evidence.timeline import BYTES, IN_THE_BOX, Item, json_line

PIPE_CLOSED = 141
"""Exit code when whatever read the output stopped reading."""
SHOWN_ROWS = 12
"""Lines of a burst that are shown."""
SHOWN_LINES = 20
"""Lines of a burst of input that are remembered, so that none is shown twice."""
MAX_INDENT = 12


@reporting()
def timeline(
    session: Annotated[str, typer.Argument(metavar="ID", help="Session id, or a beginning that only one session has.")],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,…", help="Only these: input, output, line, recording, or what events begin with: process, file, …"
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only from then on: `90m`, `7d`, `2026-01-31`, `2026-01-31T12:00Z`.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only up to then.")] = None,
    channel: Annotated[int | None, typer.Option(min=0, help="Only what came of this channel.")] = None,
    output: Annotated[bool, typer.Option("--output/--no-output", help="With what was shown to the client, or without.")] = True,
    pieces: Annotated[
        bool, typer.Option("--pieces", help="Each piece of input and output by itself, as it was recorded.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Cut nothing short.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a session on one timeline: who came, what was typed and shown, what ran, and what it did. Times are UTC.

    With --json: an object a line, with every byte. Times are by one clock, even where the machine's was set meanwhile.
    """
    now = datetime.now(UTC)
    wanted = _filter(
        kinds=None if kind is None else {one.strip() for one in kind.split(",")},
        first=None if since is None else _micros(when(since, now)),
        last=None if until is None else _micros(when(until, now, "--until")),
        channel=channel,
        output=output,
    )
    settings = load_settings(config, overrides)
    with opened_journal(settings) as journal:
        found = journal.get_session(session)
        with journal.snapshot() as db, _piped():
            items = filter(
                wanted, of_session(db, settings.recordings_dir, found.session_id, found.connection_id, bursts=not pieces)
            )
            for line in (json_line(one).decode() for one in items) if as_json else text_lines(items, full=full):
                sys.stdout.write(line)
            sys.stdout.flush()


def text_lines(items: Iterable[Item], *, full: bool = False) -> Iterator[str]:
    """Yield the timeline for reading: nothing in it moves a terminal."""
    day = ""
    typed: dict[int | None, set[str]] = {}
    for item in items:
        at = datetime.fromtimestamp(item.time // 1_000_000, UTC).replace(microsecond=item.time % 1_000_000)
        if f"{at:%Y-%m-%d}" != day:
            day = f"{at:%Y-%m-%d}"
            yield f"{day} (UTC)\n"
        if item.kind == "input":
            typed[item.channel] = set(_rows(item.data)[-SHOWN_LINES:])
        elif item.kind == "line" and item.body.get("line") in typed.get(item.channel, ()):
            continue  # it stands above, key by key
        head = f"{clock(at)}  {'' if item.channel is None else item.channel:>3}  {short(item.kind, 10):<10} "
        rows = list(_text(item, full=full))
        yield f"{head} {rows[0]}".rstrip() + "\n"
        for row in rows[1:]:
            yield f"{'':{len(head)}} {row}".rstrip() + "\n"


def _filter(
    *, kinds: set[str] | None, first: int | None, last: int | None, channel: int | None, output: bool
) -> Callable[[Item], bool]:
    def wanted(item: Item) -> bool:
        return (
            (kinds is None or item.kind in kinds)
            and (first is None or item.time >= first)
            and (last is None or item.time <= last)
            and (channel is None or item.channel == channel)
            and (output or item.kind != "output")
        )

    return wanted


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _rows(data: bytes) -> list[str]:
    return data.decode(errors="backslashreplace").replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


def _text(item: Item, *, full: bool) -> Iterator[str]:
    characters = 10**9 if full else 400
    if item.kind in BYTES:
        rows = _rows(item.data)
        mark = {"stdin": ">", "stdout": "|", "stderr": "!"}.get(item.stream or "", " ")
        for row in rows if full else rows[:SHOWN_ROWS]:
            yield f"{mark} {short(row, characters)}"
        if not full and len(rows) > SHOWN_ROWS:
            yield f"{mark} … {len(rows) - SHOWN_ROWS} more lines; {size(len(item.data))} in all"
        return
    indent = "  " * min(item.depth, MAX_INDENT) if item.kind in IN_THE_BOX else ""
    told = _TOLD.get(item.event or "", _plain)(item.body)
    yield indent + short(told if item.event is None or item.event in _TOLD else f"{item.event}  {told}", characters)


def _plain(body: dict[str, Any]) -> str:
    hidden = ("event", "connection_id", "session_id", "channel")
    told = {name: value for name, value in body.items() if name not in hidden and value not in (None, "", [], {})}
    return "  ".join(
        f"{name}={round(value, 3) if isinstance(value, float) else value}"
        for name, value in told.items()
        if value is not False or name == "accepted"
    )


def _process(body: dict[str, Any]) -> str:
    argv = " ".join(str(one) or "''" for one in body.get("argv") or [body.get("program", "?")])
    more = "" if body.get("error") is None else f"  FAILED {body['error']}"
    cut = " …" if body.get("truncated") else ""
    return f"{argv}{cut}  (pid {body.get('pid')}, uid {body.get('uid')}, in {body.get('cwd')}){more}"


def _exited(body: dict[str, Any]) -> str:
    how = f"by {body['signal']}" if body.get("signal") else "" if body.get("status") is None else f"with {body['status']}"
    return f"pid {body.get('pid')} ended {how} after {span(float(body.get('duration', 0)))}"


def _network(body: dict[str, Any]) -> str:
    port = f" port {body['port']}" if body.get("port") else ""
    more = f", and {body['repeated']} times more" if body.get("repeated") else ""
    where = f"{body.get('protocol')} {body.get('address')}{port}"
    return f"{body.get('call')} {where}: {body.get('outcome')}{more}  (pid {body.get('pid')})"


def _file(verb: str) -> Callable[[dict[str, Any]], str]:
    def told(body: dict[str, Any]) -> str:
        kept = f"sha256 {body['sha256']}" if body.get("sha256") else f"not kept: {body['skipped']}" if body.get("skipped") else ""
        link = f" -> {body['target']}" if body.get("target") else ""
        what = verb or f"{body.get('change')} {body.get('kind', '')}".strip()
        return f"{what} {body.get('path') or '(input)'}{link}, {size(int(body.get('size', 0)))}  {kept}"

    return told


_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "process.started": _process,
    "process.exited": _exited,
    "network.attempted": _network,
    "file.written": _file("wrote"),
    "file.executed": _file("executed"),
    "file.changed": _file(""),
    "channel.input": lambda body: f"> {body.get('line')}",
}


@contextmanager
def _piped() -> Iterator[None]:
    """End quietly when nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None
