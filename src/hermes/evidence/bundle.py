"""One file with all that is kept of sessions: a zip that any system opens, with nothing in it that runs by accident.

    manifest.json                 what is in the file, with SHA-256; last in the archive
    README.txt
    SESSION/seal.json             the session's manifest in the sensor's chain, if it is sealed
    SESSION/events.jsonl          its events, as the journal's JSON lines
    SESSION/timeline.jsonl, .txt  everything in one order
    SESSION/recordings/DAY/…      N.rec and N.cast, as recorded
    SESSION/streams/N.stdin …     the exact bytes of each stream
    SESSION/artifacts.zip         what the session brought or made, by SHA-256, encrypted; or artifacts/, as it is

The same evidence makes the same bytes: no time of now, no order by chance, and salts made from what they are for.
"""

import hashlib
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from Cryptodome.Cipher import AES
from Cryptodome.Hash import HMAC, SHA1
from Cryptodome.Protocol.KDF import PBKDF2
from Cryptodome.Util import Counter

from hermes.evidence import chain, manifest, sealing
from hermes.evidence.artifacts import ArtifactUnavailable, Input, copy
from hermes.evidence.encryption import pyzipper
from hermes.evidence.sources import timeline
from hermes.evidence.timeline import Item, json_line
from hermes.recording.lossless import Kind
from hermes.recording.reader import channels
from hermes.store import streams

FORMAT = "hermes-bundle/1"
MANIFEST = "manifest.json"
PASSWORD = "infected"
_PIECE = 256 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)
_STREAMS = {Kind.STDIN: "stdin", Kind.STDOUT: "stdout", Kind.STDERR: "stderr"}
_SEALED = "SELECT sealed FROM sessions WHERE session_id = ?"
_ARTIFACTS = (
    "SELECT body ->> '$.sha256', body ->> '$.size', body ->> '$.path', body ->> '$.source', body ->> '$.channel' FROM events"
    " WHERE session_id = ? AND event = 'artifact.stored' ORDER BY 1, id"
)
_README = f"""Evidence exported by Hermes, an SSH honeypot.

What attackers sent is in here as it was: open recordings, streams and timelines with tools that do not obey what they show,
and treat the content of artifacts as live malware. artifacts.zip is encrypted (AES) with the password `{PASSWORD}`.

manifest.json names every file with its SHA-256. `hermes verify-evidence FILE` checks all of it. seal.json is the session's
manifest in the chain of the sensor: its SHA-256 is what the sensor, or a note of its head, can be asked about.
Formats: docs/reference/evidence.md of Hermes.
"""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle."""

    path: str
    size: int
    sha256: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A content that the session brought or made. `file`: where it is in the bundle; None: it was not kept any more."""

    sha256: str
    size: int
    names: list[str]
    """What it was called."""
    file: str | None


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """A session of the bundle."""

    session_id: str
    sealed: str | None
    """SHA-256 of its manifest in the sensor's chain; None: it is not sealed."""
    artifacts: list[Kept]


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle holds: its `manifest.json`."""

    format: str = FORMAT
    password: str | None
    """Of each `artifacts.zip`; None: artifacts are as they are."""
    sessions: list[Exported]
    files: list[File]


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Where evidence is kept."""

    journal: Path
    recordings: Path
    artifacts: Path


class Bundle:
    """Writes one bundle."""

    def __init__(
        self, out: BinaryIO, sources: Sources, *, raw_artifacts: bool, render: Callable[[Iterable[Item]], Iterator[str]]
    ) -> None:
        """`render` makes a timeline's text."""
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6)
        self._sources = sources
        self._raw = raw_artifacts
        self._render = render
        self._files: list[File] = []

    def write(self, db: sqlite3.Connection, session_ids: Sequence[str]) -> str:
        """Write these sessions, in this order; return the SHA-256 of `manifest.json`.

        Raises OSError, sqlite3.Error, RecordingUnavailable.
        """
        with self._zip:
            self._put("README.txt", [_README.encode()])
            sessions = [self._session(db, session_id) for session_id in session_ids]
            contents = Contents(password=None if self._raw else PASSWORD, sessions=sessions, files=self._files)
            text = msgspec.json.format(msgspec.json.encode(contents, order="sorted")) + b"\n"
            self._put(MANIFEST, [text])
        return hashlib.sha256(text).hexdigest()

    def _session(self, db: sqlite3.Connection, session_id: str) -> Exported:
        connection_id, sources = streams.connection_of(db, session_id), self._sources
        sealed = self._seal(db, session_id)
        self._put(f"{session_id}/events.jsonl", (one.line for one in streams.of_session(db, session_id, connection_id)))

        def items() -> Iterator[Item]:
            return timeline(db, sources.recordings, session_id, connection_id)

        self._put(f"{session_id}/timeline.jsonl", map(json_line, items()))
        self._put(f"{session_id}/timeline.txt", (line.encode() for line in self._render(items())))
        for path in sorted(sealing.paths(sources.recordings, session_id)):
            self._put(f"{session_id}/recordings/{path}", _pieces(sources.recordings / path))
        for one in channels(sources.recordings, session_id):
            for kind, name in _STREAMS.items():
                self._put(f"{session_id}/streams/{one.channel}.{name}", one.raw(kind))
        return Exported(session_id=session_id, sealed=sealed, artifacts=self._artifacts(db, session_id))

    def _seal(self, db: sqlite3.Connection, session_id: str) -> str | None:
        """Write the session's manifest, if it has one; return its hash."""
        row = db.execute(_SEALED, (session_id,)).fetchone()
        if row is None or not row[0]:
            return None
        wanted = b'"session_id":' + msgspec.json.encode(session_id)
        for _, line in chain.lines(self._sources.journal.with_name(chain.NAME)):
            if wanted in line and (one := manifest.decode(line)) is not None and one.session_id == session_id:
                self._put(f"{session_id}/seal.json", [line])
                return manifest.digest(line)
        return None

    def _artifacts(self, db: sqlite3.Connection, session_id: str) -> list[Kept]:
        found: dict[str, tuple[int, list[str], list[Input]]] = {}
        for sha256, size, name, source, channel in db.execute(_ARTIFACTS, (session_id,)):
            _, names, inputs = found.setdefault(sha256, (size, [], []))
            names += [name] if name and name not in names else []
            inputs += [Input(session_id, channel)] if source == "input" and channel is not None else []
        kept = []
        with tempfile.TemporaryFile() as content, self._store(session_id, any_there=bool(found)) as put:
            for sha256, (size, names, inputs) in found.items():
                try:
                    copy(sha256, content, directory=self._sources.artifacts, recordings=self._sources.recordings, inputs=inputs)
                except ArtifactUnavailable:
                    kept.append(Kept(sha256=sha256, size=size, names=names, file=None))
                    continue
                content.seek(0)
                kept.append(Kept(sha256=sha256, size=size, names=names, file=put(sha256, content)))
        return kept

    @contextmanager
    def _store(self, session_id: str, *, any_there: bool) -> Iterator[Callable[[str, BinaryIO], str]]:
        """Where artifacts go: give hash and content, and get where it is in the bundle."""
        if self._raw or not any_there:

            def put(sha256: str, content: BinaryIO) -> str:
                path = f"{session_id}/artifacts/{sha256}"
                self._put(path, iter(lambda: content.read(_PIECE), b""))
                return path

            yield put
            return
        path = f"{session_id}/artifacts.zip"
        with tempfile.TemporaryFile() as archive:
            with _Encrypted(archive, "w", compression=zipfile.ZIP_DEFLATED, encryption=pyzipper.WZ_AES) as inner:
                inner.setpassword(PASSWORD.encode())

                def encrypt(sha256: str, content: BinaryIO) -> str:
                    inner.salt = bytes.fromhex(sha256)[:16]
                    info = pyzipper.zipfile_aes.AESZipInfo(sha256, _EPOCH)
                    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100400 << 16
                    with inner.open(info, "w", force_zip64=True) as member:
                        shutil.copyfileobj(content, member, _PIECE)
                    return path

                yield encrypt
            archive.seek(0)
            self._put(path, iter(lambda: archive.read(_PIECE), b""), compress=False)

    def _put(self, path: str, pieces: Iterable[bytes], *, compress: bool = True) -> None:
        """Write a file, and note its hash."""
        info = zipfile.ZipInfo(path, _EPOCH)
        info.create_system, info.external_attr = 3, 0o100400 << 16
        info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        size, found = 0, hashlib.sha256()
        with self._zip.open(info, "w", force_zip64=True) as member:
            for piece in pieces:
                member.write(piece)
                found.update(piece)
                size += len(piece)
        self._files.append(File(path=path, size=size, sha256=found.hexdigest()))


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb", opener=sealing.no_link) as file:
        while piece := file.read(_PIECE):
            yield piece


class _Encrypted(pyzipper.AESZipFile):  # type: ignore[misc]
    """A zip whose salts are given: its password is known to all, so nothing is lost by them being known."""

    salt = b""

    def get_encrypter(self) -> Any:
        return _Encrypter(self.pwd, self.salt)


class _Encrypter(pyzipper.zipfile_aes.AESZipEncrypter):  # type: ignore[misc]
    def __init__(self, pwd: bytes, salt: bytes) -> None:
        super().__init__(pwd, nbits=256)
        self.salt = salt
        keys = PBKDF2(pwd.decode(), salt, count=1000, dkLen=66)
        self.encpwdverify = keys[64:]
        self.encrypter = AES.new(keys[:32], AES.MODE_CTR, counter=Counter.new(nbits=128, little_endian=True))
        self.hmac = HMAC.new(keys[32:64], digestmod=SHA1)
