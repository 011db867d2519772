"""Find the configuration, read it, and say everything that is wrong with it at once."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hermes.config.fields import SETTINGS, Kind, own_settings
from hermes.config.models import Settings
from hermes.config.sources import (
    FILE,
    MAX_FILE,
    Entry,
    Gathered,
    Problem,
    Raw,
    Within,
    name,
    read_environ,
    read_overrides,
    read_yaml,
    shown,
)
from hermes.errors import ConfigError

SEARCHED = (Path("hermes.yaml"), Path("/etc/hermes/hermes.yaml"))
"""Where a configuration is looked for when none is named; the first relative to the working directory."""
MAX_PROBLEMS = 50
"""Problems shown at most."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, the file they came from (None: no file), and where each one that was set was set, by dotted key."""

    settings: Settings
    path: Path | None
    origins: Mapping[str, str]


def load(
    path: Path | None = None, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Loaded:
    """Load the configuration.

    Read `path`, or the first of `SEARCHED` that exists, then `HERMES_…` variables of `environ` (the process's own by
    default), then `overrides` (`key=value`): the last to set a key wins. Relative paths are taken from the file's
    directory when they stand in a file, else from `cwd` (the process's own by default).

    `ConfigError` lists every problem, one a line, each beginning with where it is; only settings that exclude each other
    are checked once every value of their section is right.
    """
    cwd = Path.cwd() if cwd is None else cwd
    gathered = Gathered()
    found = _find(path, cwd)
    if found is not None:
        used, text = found
        read_yaml(text, str(used), gathered)
    read_environ(os.environ if environ is None else environ, gathered)
    read_overrides(overrides, gathered)
    for key, entry in gathered.entries.items():
        if SETTINGS[key].kind.bare.type is Path and isinstance(entry.value, str) and entry.value:
            base = (cwd / found[0]).parent if found is not None and entry.place.layer == FILE else cwd
            entry.value = os.path.normpath(base / os.path.expanduser(entry.value))  # noqa: PTH111 - never raises
    try:
        settings = Settings.model_validate(_nested(gathered.entries))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A list of which an item is wrong is not itself another problem.
        inside = {it["loc"][:length] for it in errors for length in range(len(it["loc"]))}
        gathered.problems += [
            _problem(it, gathered.entries) for it in errors if it["type"] == "conflict" or it["loc"] not in inside
        ]
    if gathered.problems:
        raise ConfigError(_listed(gathered.problems))
    origins = {key: str(gathered.entries[key].place) for key in SETTINGS if key in gathered.entries}
    return Loaded(settings, found[0] if found is not None else None, origins)


def _find(path: Path | None, cwd: Path) -> tuple[Path, str] | None:
    """Return the file to use, as it is called in messages, and its text."""
    for candidate in SEARCHED if path is None else (path,):
        try:
            with (cwd / candidate).open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            if path is None:
                continue
            raise ConfigError(f"{candidate}: there is no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{candidate}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if len(data) > MAX_FILE:
            raise ConfigError(f"{candidate}: is longer than {MAX_FILE} bytes")
        try:
            return candidate, data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{candidate}:{line}: is not UTF-8 text") from error
    return None


def _nested(entries: Mapping[str, Entry]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, entry in entries.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = entry.value
    return tree


def _problem(error: ErrorDetails, entries: Mapping[str, Entry]) -> Problem:
    """Say in the configuration's words what pydantic found."""
    context = error.get("ctx", {})
    location: Within = tuple(it for it in error["loc"] if it != "[key]")
    known = (it for it in range(1, len(location) + 1) if ".".join(map(str, location[:it])) in SETTINGS)
    length = next(known, 0)
    key, rest = ".".join(map(str, location[:length])), location[length:]
    if rest and length and SETTINGS[key].kind.sections:
        return _item_problem(error, key, entries[key], rest)
    if error["type"] == "conflict":
        keys: tuple[str, ...] = context["keys"]
        first = next(it for it in keys if it in entries)
        return Problem(entries[first].place, f"{first} is {_value(entries[first].value)}: {context['reason']}")
    entry = entries[key]
    if "[key]" in error["loc"]:
        what = f"{key} has the key {shown(rest[-1])}"
        wants = str(context["error"])
    else:
        kind = SETTINGS[key].kind
        for _ in rest:
            kind = kind.item
        what = f"{name((key,))}{_rest(rest)} is {_value(_item(entry.value, rest))}"
        wants = _reason(error, kind)
    return Problem(entry.at(rest), f"{what}: {wants}")


def _item_problem(error: ErrorDetails, key: str, entry: Entry, rest: Within) -> Problem:
    """The same, of a list whose items are sections."""
    index, *inside = rest
    sections = SETTINGS[key].kind.sections
    tag = str(inside.pop(0)) if inside and "" not in sections else ""
    item, place = name((key, index)), entry.at((index, *inside))
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        found = _item(entry.value, (index, "type")) if error["type"] == "union_tag_invalid" else None
        what = f"{item}.type is {_value(found)}" if found is not None else f"{item} has no type"
        return Problem(entry.at((index, "type")), f"{what}: must be one of {', '.join(sections)}")
    if error["type"] == "conflict":
        return Problem(place, f"{item}: {error['ctx']['reason']}")
    if not inside:
        return Problem(place, f"{item} is {_value(_item(entry.value, rest[:1]))}: must be {SETTINGS[key].kind.item.wants}")
    kinds = {it.key: it.kind for it in own_settings(sections[tag])}
    first = str(inside[0])
    if first not in kinds:
        close = difflib.get_close_matches(first, kinds, n=1)
        return Problem(place, f"unknown key {item}{_rest((first,))}" + (f"; did you mean {close[0]}?" if close else ""))
    kind = kinds[first]
    for _ in inside[1:]:
        kind = kind.item
    if error["type"] == "missing":
        return Problem(place, f"{item} has no {first}: must be {kind.wants}")
    value = _item(entry.value, (index, *inside))
    return Problem(place, f"{item}{_rest(tuple(inside))} is {_value(value)}: {_reason(error, kind)}")


def _reason(error: ErrorDetails, kind: Kind) -> str:
    own = error.get("ctx", {}).get("error")
    if error["type"] == "value_error" and kind.written == "plain":
        return str(own)
    return f"must be {kind.wants}"


def _rest(path: Within) -> str:
    return name(("", *path)).removeprefix("''")


def _item(value: Raw, path: Within) -> Raw:
    for part in path:
        value = value[part]  # type: ignore[index]
    return value


def _value(value: Raw) -> str:
    """The value; a list with what is in it, if that is short."""
    if isinstance(value, list) and all(isinstance(it, str) for it in value):
        inner = "[" + ", ".join(shown(it) for it in value[:10]) + "]"
        return inner if len(value) <= 10 and len(inner) <= 120 else "a list"
    return shown(value)


def _listed(problems: Sequence[Problem]) -> str:
    lines = list(dict.fromkeys(str(it) for it in sorted(problems)))
    more = len(lines) - MAX_PROBLEMS
    return "\n".join(lines[:MAX_PROBLEMS] + ([f"… and {more} more"] if more > 0 else []))
