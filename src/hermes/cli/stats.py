"""`hermes stats`: what is tried, typed and brought most, by whom, and when."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hermes.analysis.counts import KINDS, Count, Window, series, top, totals
from hermes.cli.console import ConfigOption, JsonOption, SetOption, console, load_settings, print_json, reporting
from hermes.cli.indexed import moments, opened
from hermes.cli.words import short

OVERVIEW = ("credentials", "commands", "clients", "hasshs", "addresses", "networks", "countries", "asns", "files")
PIPED_WIDTH = 160
"""Columns of a table that goes to a file or another program."""

What = StrEnum("What", list(KINDS))  # type: ignore[misc]


class By(StrEnum):
    """How time is divided."""

    HOUR = "hour"
    DAY = "day"


@reporting()
def stats(
    what: Annotated[list[What] | None, typer.Argument(metavar="WHAT", help=f"One or more of {', '.join(KINDS)}.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only from then on: `90m`, `7d`, `2026-01-31`, `2026-01-31T12:00Z`.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only before then.")] = None,
    by: Annotated[
        By | None, typer.Option(help="How much there was in each hour or day (UTC), instead of what was most frequent.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each.")] = 10,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count connections, sessions, credentials, commands, clients, addresses, networks, countries and files. Times are UTC."""
    first, last = moments(since, until)
    window = Window(since=first, until=last)
    kinds = [str(it) for it in what or ()] or ([] if by is not None else list(OVERVIEW))
    with opened(load_settings(config, overrides)) as index:
        counted = totals(index, window)
        tops = {kind: top(index, kind, window, limit) for kind in kinds}
        parts = None if by is None else series(index, window, _length(by))
    if as_json:
        print_json(
            {
                "since": first and first.isoformat(),
                "until": last and last.isoformat(),
                "totals": counted,
                "top": {kind: [_row(count) for count in found] for kind, found in tops.items()},
                "series": None if parts is None else [{"time": moment.isoformat(), **numbers} for moment, numbers in parts],
            }
        )
        return
    console.print("  ".join(f"{number} {name}" for name, number in counted.items()), soft_wrap=True)
    if parts is not None:
        shape = "%Y-%m-%d %H:00" if by is By.HOUR else "%Y-%m-%d"
        _print("", ["time", *counted], [[f"{moment:{shape}}", *map(str, numbers.values())] for moment, numbers in parts])
    for kind, found in tops.items():
        if found:
            columns = [name for name in KINDS[kind].columns if name != "example"]
            rows = [[str(it.count), f"{it.last:%Y-%m-%d %H:%M}", *(_cell(it.values[name]) for name in columns)] for it in found]
            _print(kind, ["count", "last seen", *columns], rows)


def _length(by: By) -> Literal["hour", "day"]:
    return "hour" if by is By.HOUR else "day"


def _row(count: Count) -> dict[str, object]:
    return {**count.values, "count": count.count, "last": msgspec.to_builtins(count.last)}


def _cell(value: object) -> str:
    return "" if value is None else short(str(value), 120)


def _print(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=Text(title) if title else None, title_justify="left", box=SIMPLE, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if name == "count" else "left", overflow="fold", no_wrap=number < 2)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console if console.is_terminal else Console(width=PIPED_WIDTH, markup=False, highlight=False, emoji=False)
    out.print(table)
