"""`hermes search`: find what attackers typed, ran, printed, tried and brought."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
import typer
from rich.text import Text

from hermes.analysis.query import Query
from hermes.analysis.search import Hit
from hermes.analysis.search import search as find
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
from hermes.cli.indexed import moments, opened
from hermes.cli.words import short

TABLE_HITS = 50
JSON_HITS = 1000


@reporting()
def search(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORD",
            help="All of them must be there: `wget`, `/bin/busybox`, `chpass*`, and in this order `'rm -rf'`.",
        ),
    ] = None,
    substring: Annotated[bool, typer.Option("--substring", "-s", help="Find the text also inside of words.")] = False,
    fts: Annotated[
        bool, typer.Option("--fts", help="The text is an expression of SQLite's FTS5: `'wget NOT (curl OR tftp)'`.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only from then on: `90m`, `7d`, `2026-01-31`, `2026-01-31T12:00Z`.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only before then.")] = None,
    ip: Annotated[str | None, typer.Option("--ip", metavar="NETWORK", help="Only from this address or network.")] = None,
    country: Annotated[str | None, typer.Option(metavar="CC", help="Only from this country (ISO 3166).")] = None,
    hassh: Annotated[str | None, typer.Option(help="Only clients with this HASSH.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only of this user name.")] = None,
    file_hash: Annotated[str | None, typer.Option("--hash", help="Only of a file with this SHA-256, SHA-1 or MD5.")] = None,
    host: Annotated[str | None, typer.Option(help="Only commands that name this host or address.")] = None,
    event: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only events of this name: `auth.attempt`, `process.*`.")
    ] = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help="Only of this session, or those whose ids begin so.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, show_default=False, help=f"At most so many: {TABLE_HITS}, or {JSON_HITS} with --json.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search commands, input, output, arguments, file names, credentials, clients and forwards; newest first. Times are UTC."""
    if fts and substring:
        fail("--fts and --substring exclude each other", USAGE)
    try:
        network = None if ip is None else ipaddress.ip_network(ip, strict=False)
    except ValueError:
        fail(f"--ip {ip}: give an address such as 192.0.2.7, or a network such as 192.0.2.0/24", USAGE)
    first, last = moments(since, until)
    count = limit or (JSON_HITS if as_json else TABLE_HITS)
    syntax: Literal["words", "substring", "fts5"] = "fts5" if fts else "substring" if substring else "words"
    wanted = Query(
        text=_text(query or (), syntax), syntax=syntax, since=first, until=last, network=network, host=_plain(host), event=event,
        hassh=hassh and hassh.lower(), country=country and country.upper(), user=_plain(user), hash=file_hash,
        session=_plain(session), limit=count,
    )  # fmt: skip
    with opened(load_settings(config, overrides)) as index:
        hits = find(index, wanted)
    if as_json:
        print_json([_document(hit) for hit in hits])
    elif not hits:
        console.print("Nothing found.")
    else:
        for hit in hits:
            for line in _lines(hit):
                console.print(line, soft_wrap=True)
        if len(hits) == count:
            console.print("There may be more: a larger --limit, or --until.", soft_wrap=True)


def _text(words: Sequence[str], syntax: str) -> str:
    """The query that arguments make. One with spaces in it was quoted for the shell: it is a phrase."""
    if syntax == "words":
        words = [it if len(it.split()) == 1 else '"' + it.replace('"', " ") + '"' for it in words]
    return _plain(" ".join(words)) or ""


def _plain(text: str | None) -> str | None:
    """Text from the command line as the journal has it: bytes that are not UTF-8 written out."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def _document(hit: Hit) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(hit)
    found["snippet"] = "".join(piece for piece, _ in hit.snippet)
    found["highlights"] = [piece for piece, marked in hit.snippet if marked]
    return found


def _lines(hit: Hit) -> Iterable[Text]:
    about = f"{hit.time:%Y-%m-%d %H:%M:%S}  {short(hit.event)}" + ("" if hit.part == "event" else f" ({hit.part})")
    for name, value in (("session", hit.session_id and hit.session_id[:12]), ("from", hit.source_ip), ("user", hit.username)):
        if value:
            about += f"  {name} {short(value, 64)}"
    if hit.country:
        about += f"  {short(hit.country, 2)}"
    yield Text(about)
    if hit.snippet:
        line = Text("    ")
        for piece, marked in hit.snippet:
            line.append(visible(piece), style="bold red" if marked else "")
        yield line
