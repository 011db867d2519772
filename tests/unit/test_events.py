"""The catalogue of events: each can be made, written, read back, and is stated somewhere."""

import ast
import re
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes import events
from hermes.events import ALL, Event, from_bytes
from tests.unit.source import modules, room, tree

SAMPLES: dict[Any, Any] = {str: "text \x1b", int: 7, float: 1.5, bool: True, list[str]: ["a", "b"]}
READERS = {"cli", "web", "store", "outputs", "testing"}
"""Rooms in which an event that is made or named was stated by someone else."""


def sample(annotation: Any) -> Any:
    kinds = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)
    return SAMPLES[next(it for it in kinds if it is not type(None))]


def made(kind: type[Event]) -> Event:
    """An event with a value in every field."""
    return kind(**{field.name: sample(field.type) for field in msgspec.structs.fields(kind)})


@pytest.mark.parametrize("tag", ALL)
def test_every_event_can_be_made_written_and_read_back(tag: str) -> None:
    event = made(ALL[tag])
    assert event.tag() == tag
    encoded = msgspec.json.encode(event)
    assert msgspec.json.decode(encoded)["event"] == tag
    assert msgspec.json.decode(encoded, type=ALL[tag]) == event
    assert set(msgspec.json.decode(encoded)) == {"event", *event.__struct_fields__}


@pytest.mark.parametrize("tag", ALL)
def test_every_event_needs_only_what_it_must_have(tag: str) -> None:
    needed = {it.name: sample(it.type) for it in msgspec.structs.fields(ALL[tag]) if it.required}
    event = ALL[tag](**needed)
    assert (event.connection_id, event.session_id) == (None, None)
    for name in needed:
        with pytest.raises(TypeError, match=name):
            ALL[tag](**{it: value for it, value in needed.items() if it != name})


def test_events_have_names_of_one_form_and_stand_in_the_catalogue_once() -> None:
    classes = [it for it in vars(events).values() if isinstance(it, type) and issubclass(it, Event) and it is not Event]
    assert len(classes) == len(ALL)
    assert set(ALL.values()) == set(classes)
    for tag, kind in ALL.items():
        assert re.fullmatch(r"[a-z]+\.[a-z]+", tag)
        assert kind.__doc__


def test_events_cannot_be_changed() -> None:
    event = events.ContainerLost(container_id="a")
    with pytest.raises(AttributeError, match="immutable"):
        event.container_id = "b"  # type: ignore[misc]


def stated_in(module: str) -> set[str]:
    """The classes of events that a module makes (or hands, with their fields, to a function of its own)."""
    names = {kind.__name__ for kind in ALL.values()}
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            for it in (node.func, *(node.args if node.keywords else ())):
                name = it.attr if isinstance(it, ast.Attribute) else it.id if isinstance(it, ast.Name) else ""
                found |= {name} & names
    return found


def test_every_event_is_stated_somewhere() -> None:
    stated = set[str]().union(*(stated_in(it) for it in modules() if room(it) not in READERS | {"events"}))
    # What happened to the journal itself, or between two of its events, only the journal can state.
    of_the_journal = ("Journal", "ClockSet")
    stated |= {it for name in modules() if room(name) == "store" for it in stated_in(name) if it.startswith(of_the_journal)}
    assert {kind.__name__ for kind in ALL.values()} - stated == set()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_of_an_attacker_stays_as_it_is(text: str) -> None:
    assert from_bytes(text.encode()) == text


@given(st.binary())
def test_bytes_of_an_attacker_become_text_that_can_be_written(data: bytes) -> None:
    text = from_bytes(data)
    assert msgspec.json.decode(msgspec.json.encode(text)) == text


def test_bytes_that_are_no_text_are_escaped_and_backslashes_doubled() -> None:
    assert from_bytes(b"a\\b") == "a\\b"
    assert from_bytes(b"a\\b\xff") == "a\\\\b\\xff"


@given(st.binary())
def test_escaped_bytes_can_be_had_back(data: bytes) -> None:
    text = from_bytes(data)
    try:
        data.decode()
    except UnicodeDecodeError:
        pieces = re.findall(r"\\\\|\\x[0-9a-f]{2}|[^\\]", text, re.DOTALL)
        assert "".join(pieces) == text
        back = b"".join(b"\\" if it == "\\\\" else bytes.fromhex(it[2:]) if it[0] == "\\" else it.encode() for it in pieces)
        assert back == data
