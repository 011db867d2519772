"""What the journal says of contents."""

from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.store import JournalReader
from hermes.store.artifacts import known, sightings
from tests.unit.store.facts import login, write


def stored(session_id: str, digit: str, **changes: Any) -> list[events.Event]:
    one: dict[str, Any] = {"container_id": "box", "sha256": digit * 64, "size": 3, "session_id": session_id}
    one["path"] = f"/tmp/{digit}"
    return [
        events.FileWritten(**one),
        events.ArtifactStored(**{**one, "sha1": digit * 40, "md5": digit * 32, "source": "written", "known": False, **changes}),
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    write(
        path, *login("one"), *stored("one", "a"), *stored("one", "b"), *login("two"), *stored("two", "c"),
        *stored("two", "a", path="/root/later"),
    )  # fmt: skip
    return path


def test_each_content_is_there_once_last_seen_first(journal: Path) -> None:
    with JournalReader(journal) as reader:
        found = known(reader, limit=10)
        assert [(it.sha256[0], it.sessions, it.path) for it in found] == [
            ("a", 2, "/root/later"),
            ("c", 1, "/tmp/c"),
            ("b", 1, "/tmp/b"),
        ]
        assert found[0].first_seen <= found[0].last_seen
        assert (found[0].sha1, found[0].md5, found[0].size) == ("a" * 40, "a" * 32, 3)
        assert [it.sha256[0] for it in known(reader, limit=1, offset=1)] == ["c"]


def test_filters(journal: Path) -> None:
    with JournalReader(journal) as reader:
        assert [it.sha256[0] for it in known(reader, limit=10, session_id="one")] == ["b", "a"]
        assert [it.sha256[0] for it in known(reader, limit=10, beginning="bbb")] == ["b"]
        assert known(reader, limit=10, beginning="bba") == []


def test_sightings_are_all_facts_that_name_it(journal: Path) -> None:
    with JournalReader(journal) as reader:
        assert [(it.event, it.session_id, it.path) for it in sightings(reader, "a" * 64)] == [
            ("file.written", "one", "/tmp/a"),
            ("artifact.stored", "one", "/tmp/a"),
            ("file.written", "two", "/tmp/a"),
            ("artifact.stored", "two", "/root/later"),
        ]
