"""A bundle has everything, twice the same, and opens with tools of others."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import pyzipper

from hermes import events
from hermes.evidence import manifest
from hermes.evidence.bundle import Bundle, Sources
from hermes.evidence.timeline import moment
from hermes.recording.lossless import Kind
from hermes.recording.reader import channels
from hermes.store import JournalReader
from tests.unit.evidence.test_sealer import play, sealing
from tests.unit.evidence.test_verification import CONTENT, SHA, Sensor
from tests.unit.store.facts import eventually

GONE = "cd" * 32
TYPED = hashlib.sha256(b"hi\n").hexdigest()


def stored(session_id: str, sha256: str, size: int, path: str = "", source: str = "written") -> events.ArtifactStored:
    return events.ArtifactStored(
        container_id="b", channel=0, sha256=sha256, sha1="", md5="", size=size, path=path, source=source, known=False,
        session_id=session_id, connection_id=f"c-{session_id}",
    )  # fmt: skip


async def make(root: Path) -> Sensor:
    """A sensor with two sealed sessions; one of them brought three files, of which one is not kept any more."""
    sensor = Sensor(root)
    sensor.settings.journal_dir.mkdir(parents=True)
    sensor.artifact.parent.mkdir(parents=True)
    sensor.artifact.write_bytes(CONTENT)
    async with sealing(sensor.settings) as (journal, one):
        for fact in (
            stored("a", SHA, len(CONTENT), "/tmp/x"), stored("a", SHA, len(CONTENT), "/tmp/\x1by"),
            stored("a", TYPED, 3, source="input"), stored("a", GONE, 9, "/gone"),
            events.EvidenceRemoved(what="artifact", path=GONE, reason="artifacts.max_bytes", bytes=9),
        ):  # fmt: skip
            journal.emit(fact)
        for session_id in ("a", "b"):
            play(journal, sensor.settings, session_id)
            one.settled(session_id)
            await eventually(lambda: not one.pending)
    return sensor


def bundle(sensor: Sensor, *sessions: str, raw: bool = False) -> tuple[bytes, str]:
    settings = sensor.settings
    sources = Sources(journal=settings.journal_path, recordings=settings.recordings_dir, artifacts=settings.artifacts_dir)
    out = io.BytesIO()
    with JournalReader(settings.journal_path) as reader, reader.snapshot() as db:
        it = Bundle(out, sources, raw_artifacts=raw, render=lambda items: (f"{moment(one.time)} {one.kind}\n" for one in items))
        digest = it.write(db, sessions)
    return out.getvalue(), digest


@pytest.mark.asyncio
async def test_everything_is_in_it(tmp_path: Path) -> None:
    sensor = await make(tmp_path)
    data, digest = bundle(sensor, "b", "a")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    text = archive.read("manifest.json")
    assert hashlib.sha256(text).hexdigest() == digest
    contents: dict[str, Any] = json.loads(text)
    assert [one["session_id"] for one in contents["sessions"]] == ["b", "a"]
    assert {one["path"] for one in contents["files"]} | {"manifest.json"} == set(archive.namelist())
    for one in contents["files"]:
        content = archive.read(one["path"])
        assert (one["size"], one["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    for session_id in ("a", "b"):
        (day,) = {path.parts[-3] for path in sensor.recordings.glob(f"*/{session_id}/*")}
        for name in ("0.rec", "0.cast"):
            inside = archive.read(f"{session_id}/recordings/{day}/{session_id}/{name}")
            assert inside == sensor.recording(session_id, name).read_bytes()
        (channel,) = channels(sensor.recordings, session_id)
        assert archive.read(f"{session_id}/streams/0.stdout") == b"".join(channel.raw(Kind.STDOUT)) == b"hello"
        lines = archive.read(f"{session_id}/events.jsonl").splitlines()
        assert {json.loads(line)["event"] for line in lines} >= {"connection.opened", "auth.attempt", "session.sealed"}
        kinds = {json.loads(line)["kind"] for line in archive.read(f"{session_id}/timeline.jsonl").splitlines()}
        assert kinds >= {"input", "output", "auth", "session", "channel"}
        seal = archive.read(f"{session_id}/seal.json")
        assert manifest.decode(seal) is not None
        assert seal + b"\n" in sensor.lines()


@pytest.mark.asyncio
async def test_artifacts_are_encrypted_unless_asked_for_as_they_are(tmp_path: Path) -> None:
    sensor = await make(tmp_path)
    data, _ = bundle(sensor, "a")
    assert CONTENT not in data
    outer = zipfile.ZipFile(io.BytesIO(data))
    with outer.open("a/artifacts.zip") as member, pyzipper.AESZipFile(io.BytesIO(member.read())) as inner:
        assert sorted(inner.namelist()) == sorted([SHA, TYPED])
        with pytest.raises(RuntimeError, match="password"):
            inner.read(SHA)
        inner.setpassword(b"infected")
        assert inner.read(SHA) == CONTENT
        assert inner.read(TYPED) == b"hi\n", "what was piped into a command is in its recording"
    kept = {one["sha256"]: one for one in json.loads(outer.read("manifest.json"))["sessions"][0]["artifacts"]}
    assert kept[SHA]["names"] == ["/tmp/x", "/tmp/\x1by"]
    assert kept[GONE]["file"] is None
    raw = zipfile.ZipFile(io.BytesIO(bundle(sensor, "a", raw=True)[0]))
    assert raw.read(f"a/artifacts/{SHA}") == CONTENT
    assert json.loads(raw.read("manifest.json"))["password"] is None


@pytest.mark.asyncio
async def test_the_same_evidence_makes_the_same_bytes(tmp_path: Path) -> None:
    sensor = await make(tmp_path)
    assert bundle(sensor, "a", "b") == bundle(sensor, "a", "b")


@pytest.mark.asyncio
async def test_what_lies_elsewhere_by_a_link_is_not_taken(tmp_path: Path) -> None:
    sensor = await make(tmp_path)
    path = sensor.recording("b", "0.cast")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        bundle(sensor, "b")
