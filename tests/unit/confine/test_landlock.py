"""Landlock on whatever kernel this is; what it means for the front is in test_process.py."""

import os
import struct
from pathlib import Path

import pytest

from hermes.confine import kernel, landlock


def test_what_a_version_lacks_is_named() -> None:
    assert landlock.missing(7) == landlock.missing(6) == []
    assert [text.partition(" ")[0] for text in landlock.missing(0)] == ["files", "truncation", "TCP", "signals"]
    assert [text.partition(" ")[0] for text in landlock.missing(4)] == ["signals"]


def test_where_there_is_none_nothing_happens() -> None:
    landlock.restrict([landlock.Rule(Path("/no/such/place"), landlock.OWN)], 0)


def test_each_version_names_only_rights_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    handled = []

    def syscall(number: int, what: str, *arguments: object) -> int:
        if what == "landlock_create_ruleset":
            handled.append(arguments[0])
        return os.open("/", os.O_PATH)

    monkeypatch.setattr(kernel, "syscall", syscall)
    for version in range(1, 8):
        landlock.restrict([], version)
    words = [struct.unpack("QQQ", attributes) for attributes in handled if isinstance(attributes, bytes)]
    assert [word[0] for word in words] == [0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF, 0xFFFF, 0xFFFF]
    assert [word[1:] for word in words] == [(0, 0), (0, 0), (0, 0), (3, 0), (3, 0), (3, 3), (3, 3)]
