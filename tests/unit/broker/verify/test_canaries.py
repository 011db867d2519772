"""Canaries: they tell who came, and are taken away, also by the run after one that was killed."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from hermes.broker.verify.canaries import Canaries


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


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


def test_they_are_taken_away(tmp_path: Path) -> None:
    canaries = Canaries.place()
    assert canaries.file.read_text() == canaries.token
    canaries.close()
    canaries.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    used, killed = Canaries.place(), tmp_path / "hermes-verify-killed"
    killed.mkdir()
    (killed / "file").write_text("canary")
    for directory in (killed, used.directory):
        os.utime(directory, (0, 0))
    fresh = Canaries.place()
    try:
        assert {it.name for it in tmp_path.iterdir()} == {used.directory.name, fresh.directory.name}
    finally:
        fresh.close()
        used.close()
