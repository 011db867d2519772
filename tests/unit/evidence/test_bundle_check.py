"""What is done to a bundle is found, from the file alone."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import pyzipper

from hermes.evidence.bundle_check import BundleCheck, BundleUnreadable
from hermes.evidence.findings import State
from tests.unit.evidence.test_bundle import bundle, make
from tests.unit.evidence.test_verification import SHA

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    sensor = asyncio.run(make(tmp_path_factory.mktemp("sealed")))
    return bundle(sensor, "a", "b")[0]


def members(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check(path: Path, found: Members) -> list[tuple[str, str]]:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content)
    return [(one.state.value, one.what) for one in BundleCheck(path).findings() if one.state.is_wrong]


def test_a_bundle_as_it_was_made_is_whole(tmp_path: Path, exported: bytes) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(exported)
    it = BundleCheck(path)
    found = list(it.findings())
    assert {one.state for one in found} == {State.NOTE}
    assert sum("sealed as number" in one.detail for one in found) == 2
    assert (it.summary.manifests, it.summary.sessions, it.summary.artifacts) == (2, 2, 2)


def test_a_bundle_of_what_is_raw_or_not_sealed_is_whole(tmp_path: Path) -> None:
    sensor = asyncio.run(make(tmp_path / "data"))
    sensor.chain.unlink()
    path = tmp_path / "b.zip"
    path.write_bytes(bundle(sensor, "a", raw=True)[0])
    found = list(BundleCheck(path).findings())
    assert [(one.state, one.what) for one in found] == [(State.NOTE, "artifact"), (State.NOTE, "session")]


def rewritten(found: Members, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file, and what the bundle's own manifest says of it."""
    before = found[name]
    found[name] = change(before)
    for old, new in (
        (hashlib.sha256(before).hexdigest(), hashlib.sha256(found[name]).hexdigest()),
        (f'"size": {len(before)}', f'"size": {len(found[name])}'),
    ):
        found["manifest.json"] = found["manifest.json"].replace(old.encode(), new.encode())


def recording(found: Members) -> str:
    return next(name for name in found if name.startswith("a/recordings") and name.endswith(".rec"))


def repacked(data: bytes) -> bytes:
    """The artifacts with other contents."""
    out = io.BytesIO()
    with pyzipper.AESZipFile(io.BytesIO(data)) as old, pyzipper.AESZipFile(out, "w", encryption=pyzipper.WZ_AES) as new:
        new.setpassword(b"infected")
        for name in old.namelist():
            new.writestr(name, b"else" if name == SHA else b"hi\n")
    return out.getvalue()


TAMPERINGS: dict[str, tuple[Callable[[Members], object], set[tuple[str, str]]]] = {
    "a file is changed": (
        lambda it: it.update({"a/timeline.txt": b"x"}), {("changed", "file")},
    ),
    "a file is gone": (lambda it: it.pop("b/events.jsonl"), {("missing", "file"), ("changed", "session")}),
    "a file is added": (lambda it: it.update({"a/more": b""}), {("added", "file")}),
    "a recording is changed, and the manifest with it": (
        lambda it: rewritten(it, recording(it), lambda data: data[:-1] + b"x"), {("changed", "recording")},
    ),
    "an event is left out, and the manifest changed with it": (
        lambda it: rewritten(it, "a/events.jsonl", lambda data: data.split(b"\n", 1)[1]), {("changed", "session")},
    ),
    "events are nonsense": (
        lambda it: rewritten(it, "a/events.jsonl", lambda data: b"[]\n" + data), {("changed", "session")},
    ),
    "the seal is changed": (
        lambda it: rewritten(it, "a/seal.json", lambda data: data.replace(b'"count":1', b'"count":2', 1)),
        {("changed", "session")},
    ),
    "the seal is another session's": (
        lambda it: rewritten(it, "a/seal.json", lambda data: it["b/seal.json"]), {("changed", "session")},
    ),
    "artifacts are others": (
        lambda it: rewritten(it, "a/artifacts.zip", repacked), {("changed", "artifact")},
    ),
    "artifacts are no zip": (
        lambda it: rewritten(it, "a/artifacts.zip", lambda data: b"PK nonsense"), {("changed", "file")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_is_found(tmp_path: Path, exported: bytes, what: str) -> None:
    tamper, expected = TAMPERINGS[what]
    found = members(exported)
    tamper(found)
    assert set(check(tmp_path / "b.zip", found)) >= expected


def test_what_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path, exported: bytes) -> None:
    path = tmp_path / "b.zip"
    found = members(exported)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in found.items():
            archive.writestr(name, b"\0" * 50_000_000 if name == "a/timeline.txt" else content)
    assert [(one.state, one.which) for one in BundleCheck(path).findings() if one.state.is_wrong] == [
        (State.CHANGED, "a/timeline.txt")
    ]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"no zip at all", None])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "b.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleUnreadable):
        list(BundleCheck(path).findings())


@pytest.mark.parametrize("at", range(0, 4000, 97))
def test_a_bit_that_turned_anywhere_is_found_or_does_no_harm(tmp_path: Path, exported: bytes, at: int) -> None:
    path = tmp_path / "b.zip"
    data = bytearray(exported)
    place = at * len(data) // 4000
    data[place] ^= 0x10
    path.write_bytes(data)
    try:
        wrong = any(one.state.is_wrong for one in BundleCheck(path).findings())
    except BundleUnreadable:
        return
    assert wrong or members(bytes(data)) == members(exported)
