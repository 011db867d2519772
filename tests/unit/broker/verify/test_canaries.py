"""Canaries: they tell who came, and are taken away, also by the run after one that was killed."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.verify.canaries import Canaries


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own, with a path that is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        yield Path(own)


def test_only_who_brings_the_token_counts() -> None:
    canaries = Canaries.place()
    try:
        canary = next(it for it in canaries.sockets if it.family == socket.AF_INET and it.kind == socket.SOCK_STREAM)
        for word in (b"somebody else", canaries.token.encode()):
            assert canaries.touched() == []
            with socket.create_connection((canary.address, canary.port)) as visitor:
                visitor.sendall(word)
        assert canaries.touched() == [canary.name]
    finally:
        canaries.close()


def test_they_are_taken_away(place: Path) -> None:
    canaries = Canaries.place()
    assert canaries.file.read_text() == canaries.token
    canaries.close()
    canaries.close()
    assert list(place.iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_is_not(place: Path) -> None:
    used, killed = Canaries.place(), place / "hermes-verify-killed"
    killed.mkdir()
    (killed / "file").write_text("canary")
    for directory in (killed, used.directory):
        os.utime(directory, (0, 0))
    fresh = Canaries.place()
    try:
        assert {it.name for it in place.iterdir()} == {used.directory.name, fresh.directory.name}
    finally:
        fresh.close()
        used.close()
