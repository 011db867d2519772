"""Contents are read back whole and as they were, or not at all."""

import hashlib
import io
import os
from pathlib import Path

import pytest

from hermes.config import RecordingConfig
from hermes.evidence.artifacts import ArtifactUnavailable, Input, copy, path, size
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo

CONTENT = b"#!/bin/sh\n" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def keep(directory: Path, content: bytes = CONTENT) -> Path:
    place = path(directory, SHA256)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return place


def record(root: Path, channel: int, *pieces: bytes) -> Input:
    recorder = SessionRecorder(RecordingConfig(), SessionInfo("s1", "root", "192.0.2.7", 4001), channel=channel, output_dir=root)
    recorder.start()
    for piece in pieces:
        recorder.input(piece)
    recorder.output(b"answer")
    recorder.close()
    return Input("s1", channel)


def test_a_file_that_is_kept(tmp_path: Path) -> None:
    keep(tmp_path)
    assert size(tmp_path, SHA256) == len(CONTENT)
    out = io.BytesIO(b"something longer" * 100_000)
    copy(SHA256, out, directory=tmp_path, recordings=tmp_path / "none")
    assert out.getvalue() == CONTENT


def test_the_input_of_a_channel(tmp_path: Path) -> None:
    inputs = [
        Input("s0", 1),
        record(tmp_path, 1, b"other"),
        record(tmp_path, 2, CONTENT[:70_000], CONTENT[70_000:]),
        Input("..", 1),
    ]
    out = io.BytesIO()
    copy(SHA256, out, directory=tmp_path / "none", recordings=tmp_path, inputs=inputs)
    assert out.getvalue() == CONTENT
    with pytest.raises(ArtifactUnavailable, match="not kept"):
        copy(SHA256, out, directory=tmp_path / "none", recordings=tmp_path, inputs=inputs[:2])
    assert out.getvalue() == b""


@pytest.mark.parametrize("damage", [b"", CONTENT + b"x"])
def test_a_damaged_one_is_refused(tmp_path: Path, damage: bytes) -> None:
    keep(tmp_path, damage)
    with pytest.raises(ArtifactUnavailable, match="damaged"):
        copy(SHA256, io.BytesIO(), directory=tmp_path, recordings=tmp_path)


def test_what_is_no_file_is_none(tmp_path: Path) -> None:
    assert size(tmp_path, SHA256) is None
    place = path(tmp_path, SHA256)
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    assert size(tmp_path, SHA256) is None
