"""A command's input is known by its hashes."""

import hashlib
import os

import msgspec
import pytest

from hermes import events
from hermes.session.inputs import NOT_RECORDED, TOO_LARGE, Input, is_input


def fed(*pieces: bytes, most: int = 1000, recorded: bool = True) -> list[events.Event]:
    one = Input(most)
    one.is_recorded = recorded
    for piece in pieces:
        one.feed(piece)
    return [msgspec.convert({"event": kind.tag(), **fields}, kind) for kind, fields in one.facts(3, "box")]


def test_its_hashes_are_those_of_all_pieces() -> None:
    pieces = [os.urandom(size) for size in (1, 99, 0, 900)]
    content = b"".join(pieces)
    written, stored = fed(*pieces)
    assert isinstance(written, events.FileWritten)
    assert (written.container_id, written.channel, written.path, written.size, written.skipped) == ("box", 3, "", 1000, None)
    assert isinstance(stored, events.ArtifactStored)
    assert written.sha256 == stored.sha256 == hashlib.sha256(content).hexdigest()
    assert (stored.sha1, stored.md5) == (hashlib.sha1(content).hexdigest(), hashlib.md5(content).hexdigest())
    assert (stored.source, stored.size) == ("input", 1000)


def test_no_input_is_no_fact() -> None:
    assert fed() == []


@pytest.mark.parametrize(("most", "recorded", "skipped"), [(4, True, TOO_LARGE), (1000, False, NOT_RECORDED)])
def test_what_cannot_be_given_back_has_no_hash(most: int, recorded: bool, skipped: str) -> None:
    (written,) = fed(b"hello", most=most, recorded=recorded)
    assert isinstance(written, events.FileWritten)
    assert (written.size, written.sha256, written.skipped) == (5, None, skipped)


@pytest.mark.parametrize(
    ("kind", "label", "terminal", "content"),
    [
        ("exec", "sh", False, True),
        ("exec", "cat >x", True, True),
        ("shell", None, False, True),
        ("shell", None, True, False),
        ("subsystem", "sftp", False, False),
        ("subsystem", "netconf", False, True),
    ],
)
def test_keystrokes_and_protocols_are_no_content(kind: str, label: str | None, terminal: bool, content: bool) -> None:
    assert is_input(kind, label, terminal) is content
