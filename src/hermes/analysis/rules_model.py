"""What a rule for a technique says: plain data, checked strictly, with what it is for and what it is not for."""

import re
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from hermes import events

Pattern: TypeAlias = Annotated[str, Meta(min_length=1, max_length=2000)]
"""A regular expression that is searched for."""
Where: TypeAlias = dict[str, Pattern | bool | int]


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A simple command, or a process; all that is given must hold. What only wraps a command (`sudo`, `nohup`, `busybox`, …) is
    looked through."""

    name: list[str] = []
    """Names, without directory; any of them."""
    arguments: Pattern | None = None
    """Searched for in all arguments, joined by spaces."""
    without: Pattern | None = None
    """Must not be found there."""
    path: Pattern | None = None
    """Searched for in the name as it was given, with its directory."""
    redirect: Pattern | None = None
    """Searched for in each redirection, such as `>> .ssh/authorized_keys`; a process has none."""
    assignment: Pattern | None = None
    """Searched for in each assignment before the command, such as `HISTFILE=/dev/null`; a process has none."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the session brought or made, as the scanner saw it; all that is given must hold."""

    yara: Pattern | None = None
    """Searched for in `namespace:rule` and in each tag of the YARA rules that match."""
    mime: Pattern | None = None


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the ways in which a technique shows. Exactly one of these is given, `where` only with `event`."""

    text: Pattern | None = None
    """Searched for in a command line as it was typed, or sent to be executed."""
    typed: Words | None = None
    """A simple command in such a line."""
    executed: Words | None = None
    """A process that executed a program in the container."""
    command: Words | None = None
    """Either."""
    fact: str | None = None
    """What stands in such a line: `key`, `credential`, `download` or `decoded` (text in base64 that is readable)."""
    event: str | None = None
    """An event of this name."""
    where: Where = {}
    """Fields that it must have: a pattern searched for in text, or the value itself."""
    file: File | None = None


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that fires a rule, or must not: a command line, a process, an event, or what was found in a file."""

    typed: str | None = None
    executed: list[str] | None = None
    event: str | None = None
    fields: dict[str, str | int | float | bool | list[str] | None] = {}
    yara: list[str] = []
    """Names and tags of YARA rules that match a file."""
    mime: str = ""
    times: int = 1


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to recognise a technique."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{1,60}$")]
    technique: Annotated[str, Meta(pattern=r"^T[0-9]{4}(\.[0-9]{3})?$")]
    name: Annotated[str, Meta(min_length=3, max_length=200)]
    """What the attacker did, in a few words."""
    any: Annotated[list[Condition], Meta(min_length=1)]
    examples: list[Example]
    counterexamples: list[Example] = []
    count: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Times that it must show in one connection before it counts."""


FACTS = frozenset({"key", "credential", "download", "decoded"})
_ONE_OF = ("text", "typed", "executed", "command", "fact", "event", "file")


def problems(rule: Rule) -> list[str]:
    """What is wrong with a rule beyond its types: each as a few words."""
    found = [] if rule.examples else ["has no examples"]
    for number, condition in enumerate(rule.any, 1):
        given = [it for it in _ONE_OF if getattr(condition, it) is not None]
        if len(given) != 1:
            found.append(f"condition {number}: must have exactly one of {', '.join(_ONE_OF)}")
            continue
        if condition.where and condition.event is None:
            found.append(f"condition {number}: `where` needs `event`")
        if condition.fact is not None and condition.fact not in FACTS:
            found.append(f"condition {number}: no fact {condition.fact!r}; there are {', '.join(sorted(FACTS))}")
        if condition.event is not None:
            found += [f"condition {number}: {it}" for it in _event_problems(condition.event, condition.where)]
        found += [f"condition {number}: {it}" for it in _pattern_problems(condition)]
    for example in (*rule.examples, *rule.counterexamples):
        if [example.typed, example.executed, example.event].count(None) != (3 if example.yara or example.mime else 2):
            found.append("an example must have exactly one of typed, executed, event, or what was found in a file")
        elif example.event is not None and example.event not in events.ALL:
            found.append(f"an example: there is no event {example.event!r}")
    return found


def _event_problems(name: str, where: Where) -> list[str]:
    kind = events.ALL.get(name)
    if kind is None:
        return [f"there is no event {name!r}"]
    return [f"{name} has no field {field!r}" for field in where if field not in kind.__struct_fields__]


def _pattern_problems(condition: Condition) -> list[str]:
    words = [it for it in (condition.typed, condition.executed, condition.command, condition.file) if it is not None]
    patterns = [condition.text, *(it for it in condition.where.values() if isinstance(it, str))]
    for it in words:
        patterns += [value for name in it.__struct_fields__ if isinstance(value := getattr(it, name), str)]
    found = []
    for pattern in patterns:
        try:
            re.compile(pattern or "")
        except re.error as error:
            found.append(f"{pattern!r} is no regular expression: {error}")
    if any(all(not getattr(it, name) for name in it.__struct_fields__) for it in words):
        found.append("it holds for everything")
    return found
