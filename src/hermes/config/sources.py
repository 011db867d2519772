"""Where values come from: a YAML file, the environment, `--set`. Text goes in; raw values, places and problems come out.

Every scalar stays the text its author wrote (`007`, `off`, `1e3`): the models alone decide what it means, so that a value
means the same in the file, in the environment and after `--set`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml

from hermes.config.fields import BY_ENV, ENV_PREFIX, SECTIONS, SETTINGS, Kind, Setting

MAX_FILE = 1024 * 1024
"""Longest configuration file read, in bytes."""
MAX_DEPTH = 16
"""Deepest nesting of lists and mappings."""
MAX_ALIASES = 100
"""Aliases (`*name`) in one document."""
MAX_VALUES = 100_000
"""Values in one document, each alias counted with all it stands for."""

Raw: TypeAlias = "str | list[Raw] | dict[str, Raw] | None"
Within: TypeAlias = tuple[str | int, ...]

FOREIGN = re.compile(r"HERMES_(?:PYTHON|TEST_.*|BENCH_.*)", re.DOTALL)
"""Variables that Hermes' own scripts, tests and bench read: they may stand in the environment of a Hermes started by those."""

FILE, _ENVIRON, _OVERRIDE = 0, 1, 2
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{it}" for it in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
)


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """Where something was written. Places sort as their layers do, then by line."""

    layer: int
    order: int
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.order}" if self.layer == FILE and self.order else self.source


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """Something wrong, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(slots=True)
class Entry:
    """A setting's raw value, where it was set, and where each item of it was."""

    value: Raw
    place: Place
    items: dict[Within, Place] = field(default_factory=dict)

    def at(self, path: Within) -> Place:
        """The place of the item at `path`, or of the nearest thing around it."""
        while path and path not in self.items:
            path = path[:-1]
        return self.items.get(path, self.place)


@dataclass(slots=True)
class Gathered:
    """What the sources say together: later ones win."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))


def shown(value: object) -> str:
    """A value for a message: on one line, printable ASCII only, and short."""
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    return ascii(text) if len(text) <= 60 else ascii(text[:60]) + "…"


def name(path: Iterable[str | int]) -> str:
    """A dotted key for a message: `authentication.passwords.root[2]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            safe = part if part.isascii() and part.isprintable() and " " not in part and 0 < len(part) <= 60 else shown(part)
            text += f".{safe}" if text else safe
    return text


# ---- YAML


class _Refused(Exception):
    """The document, or a part of it, cannot be taken at all."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


class _Loader(yaml.SafeLoader):
    """SafeLoader up to the node graph, with bounds on what a document can make of itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        line = self.line + 1
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise _Refused(line, f"more than {MAX_ALIASES} aliases")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(it for it in (error.context, error.problem) if it)
        hint = "; text that begins with '*' must stand in quotes" if error.context == "while scanning an alias" else ""
        raise _Refused(mark.line + 1 if mark else 0, f"is not valid YAML: {_one_line(what)}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Refused(line, f"is not valid YAML: it holds the character {ord(text[error.position]):#x}") from error
    except (ValueError, OverflowError) as error:
        raise _Refused(0, "is not valid YAML: it holds an impossible character") from error


def _one_line(text: str) -> str:
    return " ".join("".join(it if " " <= it <= "~" else ascii(it)[1:-1] for it in text).split())[:200]


@dataclass(slots=True)
class _Reader:
    """Turns nodes into raw values. `line` gives the place of a line."""

    gathered: Gathered
    layer: int
    source: str
    fixed: Place | None = None
    count: int = 0

    def place(self, node: yaml.Node) -> Place:
        return self.fixed or Place(self.layer, node.start_mark.line + 1, self.source)

    def raw(self, node: yaml.Node, entry: Entry, path: Within, key: str, *, optional: bool = False) -> Raw:
        """Return the node's value; note in `entry` where each part of it stands."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise _Refused(node.start_mark.line + 1, f"more than {MAX_VALUES} values, aliases counted with what they stand for")
        if len(path) > MAX_DEPTH:
            raise _Refused(node.start_mark.line + 1, "a value contains itself")
        if path:
            entry.items[path] = self.place(node)
        if node.tag not in _PLAIN_TAGS:
            self.gathered.problem(self.place(node), f"{name((key, *path))} has the tag {shown(node.tag)}: tags mean nothing here")
        if isinstance(node, yaml.SequenceNode):
            return [self.raw(item, entry, (*path, index), key) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return {part: self.raw(value, entry, (*path, part), key) for part, _, value in self.pairs(node, (key, *path))}
        return None if _is_nothing(node) and (optional or node.value == "") else str(node.value)

    def pairs(self, node: yaml.MappingNode, path: Within) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """The mapping's keys and values; a key that is no text or comes again is a problem, and left out."""
        first: dict[str, Place] = {}
        for key, value in node.value:
            where = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.gathered.problem(where, f"a key in {name(path) or 'the file'} is {shown(key.value)}: must be text")
            elif key.value in first:
                self.gathered.problem(where, f"{name((*path, key.value))} is there twice; first at {first[key.value]}")
            else:
                first[key.value] = where
                yield key.value, key, value


def read_yaml(text: str, source: str, gathered: Gathered) -> None:
    """Take the settings of a YAML file's text; `source` names the file in messages."""
    reader = _Reader(gathered, FILE, source)
    try:
        node = _compose(text)
        if isinstance(node, yaml.MappingNode):
            _section(node, "", reader)
        elif node is not None and not _is_nothing(node):
            what = "a list" if isinstance(node, yaml.SequenceNode) else shown(node.value)
            gathered.problem(reader.place(node), f"is {what}: must be a mapping of settings, such as 'server: {{port: 2222}}'")
    except _Refused as error:
        gathered.problem(Place(FILE, error.line, source), error.text)


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _section(node: yaml.MappingNode, prefix: str, reader: _Reader) -> None:
    for part, key_node, value in reader.pairs(node, tuple(prefix.split(".")) if prefix else ()):
        key = f"{prefix}.{part}" if prefix else part
        place = reader.place(key_node)
        if (setting := SETTINGS.get(key)) is not None:
            entry = Entry(None, place)
            entry.value = reader.raw(value, entry, (), key, optional=setting.kind.optional)
            reader.gathered.entries[key] = entry
        elif key not in SECTIONS:
            reader.gathered.problem(place, _unknown(key))
        elif isinstance(value, yaml.MappingNode):
            if len(key.split(".")) > MAX_DEPTH:
                raise _Refused(place.order, "a value contains itself")
            _section(value, key, reader)
        elif not _is_nothing(value):
            reader.gathered.problem(place, f"{key} is {shown(value.value)}: must be a mapping of settings, such as {_some(key)}")


def _some(section: str) -> str:
    return ", ".join(list(SECTIONS[section].model_fields)[:2])


def _unknown(key: str) -> str:
    safe = name(key.split("."))
    if (close := _closest(key) if len(key) <= 200 else None) is None:
        return f"unknown key {safe}; 'hermes config schema' lists all keys"
    return f"unknown key {safe}; did you mean {close}?"


def _closest(key: str) -> str | None:
    """The known key that was most likely meant: a sibling, the same name elsewhere, or a misspelling of the whole."""
    section, _, last = key.rpartition(".")
    siblings = {it.rpartition(".")[2]: it for it in (*SETTINGS, *SECTIONS) if it.rpartition(".")[0] == section}
    if near := difflib.get_close_matches(last, siblings, n=1, cutoff=0.6):
        return siblings[near[0]]
    namesakes = [it for it in SETTINGS if it.rpartition(".")[2] == last]
    return next(iter(namesakes or difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8)), None)


# ---- text for one setting


def _from_text(text: str, setting: Setting, kind: Kind, place: Place, gathered: Gathered) -> Entry | None:
    """Read what the environment or `--set` says of a setting (or of an item of it, of another kind); None after a problem."""
    entry = Entry(None, place)
    if not (kind.is_list or kind.is_mapping):
        if kind.bare.type not in (str, Path):
            text = text.strip()
        entry.value = None if kind.optional and text in _NULLS else text
        return entry
    try:
        node = _compose(text)
        if node is not None:
            entry.value = _Reader(gathered, place.layer, place.source, place).raw(node, entry, (), setting.key)
    except _Refused as error:
        gathered.problem(place, f"{setting.key} is {shown(text)}: {error.text}")
        return None
    return entry


def read_environ(environ: Mapping[str, str], gathered: Gathered) -> None:
    """Take every `HERMES_…` variable but the `FOREIGN` ones."""
    for order, variable in enumerate(sorted(it for it in environ if it.startswith(ENV_PREFIX) and not FOREIGN.fullmatch(it))):
        place = Place(_ENVIRON, order, name((variable,)))
        text = environ[variable]
        if (setting := BY_ENV.get(variable)) is not None:
            if (entry := _from_text(text, setting, setting.kind, place, gathered)) is not None:
                gathered.entries[setting.key] = entry
            continue
        key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if key in SECTIONS:
            first = SECTIONS[key].model_fields
            gathered.problem(place, f"{key} is a section: set its keys, such as {variable}__{next(iter(first)).upper()}")
        elif (mapping := _mapping_around(key)) is not None:
            gathered.problem(place, f"{mapping.key} is set as a whole: {mapping.env}='{{root: [secret]}}'")
        else:
            close = difflib.get_close_matches(variable, BY_ENV, n=1, cutoff=0.7) if len(variable) <= 200 else []
            gathered.problem(place, "unknown setting" + (f"; did you mean {close[0]}?" if close else ""))


def _mapping_around(key: str) -> Setting | None:
    return next((it for it in SETTINGS.values() if it.kind.is_mapping and key.startswith(it.key + ".")), None)


def read_overrides(overrides: Sequence[str], gathered: Gathered) -> None:
    """Take `--set` arguments, `key=value` each; of a mapping also one item, `authentication.passwords.root=[secret]`."""
    for order, argument in enumerate(overrides):
        key, equals, text = argument.partition("=")
        place = Place(_OVERRIDE, order, f"--set {name((key,))}")
        if not equals:
            gathered.problem(place, "must be key=value, such as server.port=2222")
        elif (setting := SETTINGS.get(key)) is not None:
            if (entry := _from_text(text, setting, setting.kind, place, gathered)) is not None:
                gathered.entries[key] = entry
        elif key in SECTIONS:
            gathered.problem(place, f"{key} is a section: set its keys, such as {key}.{next(iter(SECTIONS[key].model_fields))}")
        elif (mapping := _mapping_around(key)) is not None:
            if (entry := _from_text(text, mapping, mapping.kind.item, place, gathered)) is not None:
                _put_item(gathered, mapping, key.removeprefix(mapping.key + "."), entry)
        else:
            gathered.problem(place, _unknown(key))


def _put_item(gathered: Gathered, setting: Setting, item: str, new: Entry) -> None:
    old = gathered.entries.get(setting.key)
    value: dict[str, Raw] = {it: list(values) for it, values in setting.default.items()}
    if old is not None and isinstance(old.value, dict):
        value = dict(old.value)
    value[item] = new.value
    items = {} if old is None else {path: place for path, place in old.items.items() if path[0] != item}
    items |= {(item, *path): place for path, place in [((), new.place), *new.items.items()]}
    gathered.entries[setting.key] = Entry(value, new.place, items)
