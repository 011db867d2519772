"""Manifests have one form."""

import hashlib
from pathlib import Path

import pytest

from hermes.evidence import manifest
from hermes.evidence.manifest import Artifact, Covered, File, Manifest
from hermes.store import JournalReader, streams
from hermes.store.lines import Row, line
from tests.unit.store.facts import login, write

NOTHING = Covered(count=0, sha256=hashlib.sha256().hexdigest())


def made(sequence: int = 1, previous: str = "", session_id: str = "s", **more: object) -> Manifest:
    known: dict[str, object] = {
        "sealed": "2026-01-01T00:00:00.000000Z", "sensor": "s1", "journal": "j", "connection_id": None, "events": NOTHING,
        "after": 0, "through": 9, "journaled": NOTHING, "removals": NOTHING,
        "recordings": [File(path="2026-01-01/s/0.rec", size=1, sha256="00")], "artifacts": [Artifact(sha256="11", size=2)],
    }  # fmt: skip
    return Manifest(sequence=sequence, previous=previous, session_id=session_id, **(known | more))  # type: ignore[arg-type]


def test_it_comes_back_as_it_was_and_its_form_is_fixed() -> None:
    text = manifest.encode(made())
    assert manifest.decode(text) == made()
    assert text.startswith(
        b'{"after":0,"artifacts":[{"sha256":"11","size":2}],"connection_id":null,"events":{"count":0,"first":0,'
    )
    assert manifest.digest(text) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"\xff", b"[" * 5000, manifest.encode(made()).replace(b"{", b"{ ", 1), manifest.encode(made(format="other/2"))],
)
def test_what_is_not_in_its_form_is_none(line: bytes) -> None:
    assert manifest.decode(line) is None


def test_events_are_digested_as_their_lines(tmp_path: Path) -> None:
    write(tmp_path / "journal.db", *login("s", username="ré\x7f"))
    with JournalReader(tmp_path / "journal.db") as reader, reader.snapshot() as db:
        found = list(streams.of_session(db, "s", "c-s"))
    lines = b"".join(line(Row(one.id, one.time, one.sensor, one.body.encode())) for one in found)
    assert manifest.of_events(found) == Covered(count=7, sha256=hashlib.sha256(lines).hexdigest(), first=1, last=7)
    assert manifest.of_events([one._replace(event="evidence.removed") for one in found]) == NOTHING
