"""Rules for techniques, loaded and matched: against command lines, processes, other events, and what was found in files. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from hermes.analysis import shell
from hermes.analysis.rules_model import Condition, File, Rule, Words, problems
from hermes.analysis.shell_types import base
from hermes.errors import ConfigError
from hermes.store import StoredEvent

MAX_FILES = 1000
MAX_FILE = 4 * 2**20
MAX_MATCHED = 8192
"""Characters of one text that patterns are searched for in."""
MAX_EVIDENCE = 300
_ENGINE = 1
"""Raised when the same rules find other things."""


class Hit(NamedTuple):
    """A rule that fired, and the text that fired it."""

    rule: Rule
    evidence: str


class Technique(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A technique of ATT&CK."""

    name: str
    tactics: list[str]


class Rules:
    """All the rules there are, ready to be matched."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.all = {it.id: it for it in rules}
        data = msgspec.json.encode([_ENGINE, *sorted(rules, key=lambda it: it.id)])
        self.fingerprint = int.from_bytes(sha256(data).digest()[:4], "big")
        """Of what they say: another one may find other things in the same events."""
        self._text: list[tuple[Rule, re.Pattern[str]]] = []
        self._facts: list[tuple[Rule, str]] = []
        self._typed = _ByName()
        self._executed = _ByName()
        self._events: dict[str, list[tuple[Rule, dict[str, Any]]]] = {}
        self._files: list[tuple[Rule, File]] = []
        for rule in rules:
            for condition in rule.any:
                self._add(rule, condition)
        self.typed = lru_cache(maxsize=4096)(self._match_typed)
        """Rules that a command line fires."""

    def _add(self, rule: Rule, condition: Condition) -> None:
        if condition.text is not None:
            self._text.append((rule, re.compile(condition.text)))
        if condition.fact is not None:
            self._facts.append((rule, condition.fact))
        for words in (condition.typed, condition.command):
            if words is not None:
                self._typed.add(rule, words)
        for words in (condition.executed, condition.command):
            if words is not None:
                self._executed.add(rule, words)
        if condition.event is not None:
            where = {field: re.compile(it) if isinstance(it, str) else it for field, it in condition.where.items()}
            self._events.setdefault(condition.event, []).append((rule, where))
        if condition.file is not None:
            self._files.append((rule, condition.file))

    def _match_typed(self, text: str) -> tuple[Hit, ...]:
        parsed = shell.parse(text)
        hits: dict[str, Hit] = {}
        shown = parsed.text[:MAX_MATCHED]
        for rule, fact in self._facts:
            if (found := _FACTS[fact](parsed)) is not None:
                hits.setdefault(rule.id, Hit(rule, found[:MAX_EVIDENCE]))
        for command in parsed.commands:
            name, arguments = command.plain()
            redirects = tuple(f"{it.operator} {it.target}" for it in command.redirects if not it.operator.startswith("<<"))
            given = command.name if base(command.name) == name else _given(command, name)
            for rule in self._typed.match(name, given, arguments, redirects, command.assignments):
                line = " ".join([*command.assignments, command.name, *command.arguments, *redirects])
                hits.setdefault(rule.id, Hit(rule, line[:MAX_EVIDENCE]))
        for rule, pattern in self._text:
            if (match := pattern.search(shown)) is not None:
                hits.setdefault(rule.id, Hit(rule, _around(shown, match)))
        return tuple(hits.values())

    def executed(self, program: str, argv: Sequence[str]) -> Iterator[Hit]:
        """Rules that a process fires."""
        command = shell.Command(program or (argv[0] if argv else ""), tuple(argv[1:]))
        name, arguments = command.plain()
        given = program if base(program) == name else _given(command, name)
        for rule in self._executed.match(name, given, arguments, (), ()):
            yield Hit(rule, " ".join([program, *argv[1:]])[:MAX_EVIDENCE])

    def event(self, event: StoredEvent) -> Iterator[Hit]:
        """Rules that an event fires by its fields."""
        for rule, where in self._events.get(event.event, ()):
            if all(_holds(event.body.get(field), wanted) for field, wanted in where.items()):
                told = " ".join(f"{field}={event.body.get(field)}" for field in where)
                yield Hit(rule, f"{event.event} {told}".strip()[:MAX_EVIDENCE])

    def file(self, names: Sequence[str], mime: str) -> Iterator[Hit]:
        """Rules that a file fires: `names` are `namespace:rule` and tags of the YARA rules that match it."""
        for rule, wanted in self._files:
            if wanted.mime is not None and re.search(wanted.mime, mime) is None:
                continue
            if wanted.yara is None:
                yield Hit(rule, mime)
            elif (found := next((it for it in names if re.search(wanted.yara, it)), None)) is not None:
                yield Hit(rule, f"YARA {found}"[:MAX_EVIDENCE])


class _ByName:
    """Conditions on simple commands, found by the command's name where they name one."""

    def __init__(self) -> None:
        self._named: dict[str, list[tuple[Rule, Words]]] = {}
        self._any: list[tuple[Rule, Words]] = []

    def add(self, rule: Rule, words: Words) -> None:
        for name in words.name:
            self._named.setdefault(name, []).append((rule, words))
        if not words.name:
            self._any.append((rule, words))

    def match(
        self, name: str, given: str, arguments: Sequence[str], redirects: Sequence[str], assignments: Sequence[str]
    ) -> Iterator[Rule]:  # fmt: skip
        joined = " ".join(arguments)[:MAX_MATCHED]
        for rule, words in (*self._named.get(name, ()), *self._any):
            if (
                (words.arguments is None or re.search(words.arguments, joined))
                and (words.without is None or not re.search(words.without, joined))
                and (words.path is None or re.search(words.path, given[:MAX_MATCHED]))
                and (words.redirect is None or any(re.search(words.redirect, it[:MAX_MATCHED]) for it in redirects))
                and (words.assignment is None or any(re.search(words.assignment, it[:MAX_MATCHED]) for it in assignments))
            ):
                yield rule


def _given(command: shell.Command, name: str) -> str:
    """The name of what a wrapper runs, with its directory."""
    return next((it for it in command.arguments if base(it) == name), name)


def _around(text: str, match: re.Match[str]) -> str:
    """What matched, with what is near it."""
    start = max(0, match.start() - 60)
    return ("…" if start else "") + text[start : max(match.end(), start + MAX_EVIDENCE - 20)][: MAX_EVIDENCE - 1]


def _holds(value: object, wanted: object) -> bool:
    if not isinstance(wanted, re.Pattern):
        return bool(value == wanted)
    return isinstance(value, str) and wanted.search(value[:MAX_MATCHED]) is not None


_FACTS: dict[str, Callable[[shell.Parsed], str | None]] = {
    "key": lambda it: next((f"{key.type} {key.fingerprint} {key.comment}".strip() for key in it.facts.keys), None),
    "credential": lambda it: next((f"{one.user or '(own)'}:{one.password}" for one in it.facts.credentials), None),
    "download": lambda it: next((f"{one.tool} {one.source}" for one in it.facts.downloads), None),
    "decoded": lambda it: next(iter(it.facts.decoded), None),
}


# ---- loading


def load(directory: Path | None) -> Rules:
    """The built-in rules, and an operator's, which replace built-in ones of the same id. ConfigError lists what is wrong."""
    own = files("hermes.analysis").joinpath("rules")
    rules: dict[str, Rule] = {}
    for entry in sorted(own.iterdir(), key=lambda it: it.name):
        if entry.name.endswith(".yaml") and entry.name != "attack.yaml":
            rules |= {it.id: it for it in parse(entry.read_text(), entry.name)}
    if directory is not None:
        rules |= {it.id: it for it in _operators(directory)}
    return Rules(list(rules.values()))


def catalogue() -> dict[str, Technique]:
    """Names and tactics of the techniques that the built-in rules are about."""
    text = files("hermes.analysis").joinpath("rules", "attack.yaml").read_text()
    return msgspec.convert(yaml.safe_load(text), dict[str, Technique])


def _operators(directory: Path) -> Iterable[Rule]:
    if not directory.is_dir():
        raise ConfigError(f"analysis.technique_rules: {directory} is no directory")
    wrong: list[str] = []
    seen: dict[str, str] = {}
    found: list[Rule] = []
    for path in sorted(directory.glob("*.yaml"))[:MAX_FILES]:
        try:
            if path.stat().st_size > MAX_FILE:
                raise ConfigError(f"{path}: is longer than {MAX_FILE} bytes")
            for rule in parse(path.read_text(), str(path)):
                if rule.id in seen:
                    wrong.append(f"{path}: {rule.id} is in {seen[rule.id]}, too")
                seen[rule.id] = str(path)
                found.append(rule)
        except ConfigError as error:
            wrong.append(str(error))
        except OSError as error:
            wrong.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            wrong.append(f"{path}: is not UTF-8 text")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return found


def parse(text: str, origin: str) -> list[Rule]:
    """Read a file of rules, a list in YAML. ConfigError has a line for each mistake, with the line where its rule begins."""
    try:
        data = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{origin}:{line}: {getattr(error, 'problem', None) or 'is no YAML'}") from error
    if not isinstance(data, list) or not isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"{origin}:1: must be a list of rules")
    wrong: list[str] = []
    rules: list[Rule] = []
    for item, place in zip(data, node.value, strict=True):
        at = f"{origin}:{place.start_mark.line + 1}"
        named = item.get("id") if isinstance(item, dict) else None
        try:
            rule = msgspec.convert(item, Rule)
        except msgspec.ValidationError as error:
            wrong.append(f"{at}: {named or 'a rule'}: {error}")
            continue
        if rule.id in {it.id for it in rules}:
            wrong.append(f"{at}: {rule.id}: is there twice")
        wrong += [f"{at}: {rule.id}: {it}" for it in problems(rule)]
        rules.append(rule)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return rules
