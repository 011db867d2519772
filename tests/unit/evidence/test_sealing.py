"""What a manifest says of a session."""

import hashlib
from pathlib import Path
from typing import Any

from hermes import events
from hermes.config import RecordingConfig
from hermes.evidence import sealing
from hermes.evidence.chain import Head
from hermes.evidence.manifest import Artifact, Manifest
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo
from hermes.store import JournalReader
from tests.unit.store.facts import fact, login, logout, write

SHA = "ab" * 32
START = Head()


def record(root: Path, session_id: str, channel: int = 0, data: bytes = b"hello") -> str:
    """Record a channel in good order; return where, relative to `root`."""
    info = SessionInfo(session_id, "root", "192.0.2.7", 4001, authenticated=True)
    one = SessionRecorder(RecordingConfig(), info, channel=channel, output_dir=root)
    one.start()
    one.input(b"hi\n")
    one.output(data)
    one.close(exit_status=0)
    return one.relative_path


def stored_artifact(session_id: str, sha256: str = SHA, size: int = 3) -> events.ArtifactStored:
    both: Any = {"connection_id": f"c-{session_id}", "session_id": session_id}
    return events.ArtifactStored(
        container_id="b", sha256=sha256, sha1="", md5="", size=size, path="/x", source="written", known=False, **both
    )  # fmt: skip


def seal(root: Path, session_id: str, head: Head = START) -> Manifest | None:
    with JournalReader(root / "journal.db") as reader, reader.snapshot() as db:
        return sealing.seal(db, root / "recordings", session_id, "s1", head)


def test_it_names_everything_there_is(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    cast = Path(record(recordings, "s"))
    record(recordings, "s", 1, b"x" * 3_000_000)
    (recordings / cast.parent / "notes.txt").write_text("not ours")
    removed = events.EvidenceRemoved(session_id="s", what="recording", path="d/s", reason="r", bytes=1)
    write(tmp_path / "journal.db", *login("s"), fact(1), stored_artifact("s"), stored_artifact("s"), removed, *logout("s"))
    one = seal(tmp_path, "s", Head(4, "feed", "other journal", 1000))
    assert one is not None
    assert (one.sequence, one.previous, one.session_id, one.connection_id, one.sensor) == (5, "feed", "s", "c-s", "s1")
    assert (one.events.count, one.journaled.count, one.removals.count) == (12, 14, 1)
    assert (one.after, one.through) == (0, 14)
    names = [f"{cast.parent}/{name}" for name in ("0.cast", "0.rec", "1.cast", "1.rec")]
    assert [it.path for it in one.recordings] == names
    for it in one.recordings:
        data = (recordings / it.path).read_bytes()
        assert (it.size, it.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert one.artifacts == [Artifact(sha256=SHA, size=3)]
    following = seal(tmp_path, "s", Head(5, "f00d", one.journal, one.through))
    assert following is not None
    assert (following.after, following.journaled.count, following.events) == (14, 0, one.events)


def test_nothing_is_sealed_of_who_is_not_known(tmp_path: Path) -> None:
    write(tmp_path / "journal.db", *login("s"))
    assert seal(tmp_path, "nobody") is None


def test_what_cannot_be_read_is_named_without_a_hash(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory", "missing"):
        assert sealing.hash_file(tmp_path / name) == (0, None)
