"""Whether an exported bundle is whole, and is what its seals say: from the file alone. It may be anybody's making."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hermes.errors import HermesError
from hermes.evidence import manifest
from hermes.evidence.bundle import FORMAT, MANIFEST, Contents, Exported
from hermes.evidence.encryption import pyzipper
from hermes.evidence.findings import Finding, Summary, added, changed, missing, note
from hermes.evidence.manifest import NOT_OF_A_SESSION, Digest, Manifest

MAX_MANIFEST = 256 * 1024 * 1024
MAX_LINE = 64 * 1024 * 1024
_PIECE = 256 * 1024
_BAD = (zipfile.BadZipFile, pyzipper.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError, KeyError)
"""What reading a member of a zip can raise that somebody changed."""


class BundleUnreadable(HermesError):
    """It is no bundle, or cannot be read as one."""


class _Line(msgspec.Struct, frozen=True):
    id: int
    event: str


_line = msgspec.json.Decoder(_Line).decode


class BundleCheck:
    """One look at a bundle: iterate over `findings`; `summary` is complete at their end."""

    def __init__(self, path: Path) -> None:
        self.summary = Summary()
        self._path = path
        self._sizes: dict[str, tuple[int, str]] = {}
        """Size and hash of what was read, by its path."""

    def findings(self) -> Iterator[Finding]:
        """Yield what is found. Raises BundleUnreadable."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                contents = self._contents(archive)
                yield from self._files(archive, contents)
                for one in contents.sessions:
                    yield from self._session(archive, one, contents.password)
        except FileNotFoundError as error:
            raise BundleUnreadable(f"there is no file {self._path}") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise BundleUnreadable(f"{self._path} cannot be read as a zip: {error}") from error

    def _contents(self, archive: zipfile.ZipFile) -> Contents:
        try:
            if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
                raise BundleUnreadable(f"{self._path}: its {MANIFEST} is too large")
            contents = msgspec.json.decode(archive.read(MANIFEST), type=Contents)
        except (*_BAD, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BundleUnreadable(f"{self._path} is no bundle: its {MANIFEST} cannot be read") from error
        if contents.format != FORMAT:
            raise BundleUnreadable(f"{self._path} is of format {contents.format[:40]!r}, and this Hermes knows {FORMAT}")
        return contents

    # ---- every file against the bundle's own manifest

    def _files(self, archive: zipfile.ZipFile, contents: Contents) -> Iterator[Finding]:
        there: dict[str, int] = {}
        for name in archive.namelist():
            there[name] = there.get(name, 0) + 1
        for one in contents.files:
            if not there.pop(one.path, 0):
                yield missing("file", one.path, f"{MANIFEST} names it, and it is not there")
                continue
            self.summary.files += 1
            found = _hash(archive, one.path, one.size)
            if found is not None:
                self._sizes[one.path] = found
            if found != (one.size, one.sha256):
                yield changed("file", one.path, f"it is not what {MANIFEST} says")
        there.pop(MANIFEST, None)
        for name in there:
            yield added("file", name, f"{MANIFEST} does not name it")
        if len(set(archive.namelist())) != len(archive.namelist()):
            yield added("file", "", "a name stands in the archive twice")

    # ---- a session against its seal

    def _session(self, archive: zipfile.ZipFile, one: Exported, password: str | None) -> Iterator[Finding]:
        yield from self._artifacts(archive, one, password)
        if one.sealed is None:
            yield note("session", one.session_id, "it was not sealed when it was exported")
            return
        try:
            with archive.open(f"{one.session_id}/seal.json") as member:
                line = member.read(manifest.MAX_LINE)
        except _BAD:
            line = b""
        seal = manifest.decode(line)
        if seal is None or manifest.digest(line) != one.sealed or seal.session_id != one.session_id:
            yield changed("session", one.session_id, "its seal is not the one that the bundle names")
            return
        self.summary.manifests += 1
        yield note("session", one.session_id, f"sealed as number {seal.sequence} of {seal.sensor}'s chain, manifest {one.sealed}")
        yield from self._recordings(one, seal)
        yield from self._events(archive, one, seal)
        told = {it.sha256 for it in one.artifacts}
        for it in seal.artifacts:
            if it.sha256 not in told:
                yield missing(
                    "artifact", it.sha256, f"it was sealed with session {one.session_id}, and the bundle does not name it"
                )

    def _recordings(self, one: Exported, seal: Manifest) -> Iterator[Finding]:
        base = f"{one.session_id}/recordings/"
        for it in seal.recordings:
            found = self._sizes.get(base + it.path)
            if found is None:
                yield missing("recording", it.path, "it was sealed, and is not in the bundle")
            elif it.sha256 is not None and found != (it.size, it.sha256):
                yield changed("recording", it.path, "it is not what was sealed")
        sealed = {base + it.path for it in seal.recordings}
        for path in self._sizes:
            if path.startswith(base) and path not in sealed:
                yield added("recording", path.removeprefix(base), "it was not there when its session was sealed")

    def _events(self, archive: zipfile.ZipFile, one: Exported, seal: Manifest) -> Iterator[Finding]:
        found = Digest()
        try:
            with archive.open(f"{one.session_id}/events.jsonl") as member:
                for line in iter(lambda: member.readline(MAX_LINE), b""):
                    event = _line(line)
                    self.summary.events += 1
                    if event.id <= seal.through and event.event not in NOT_OF_A_SESSION:
                        found.add(event.id, line)
        except (*_BAD, msgspec.MsgspecError, UnicodeError, RecursionError):
            yield changed("session", one.session_id, "its events cannot be read")
            return
        if found.covered == seal.events:
            self.summary.sessions += 1
        else:
            yield changed("session", one.session_id, "its events are not those that were sealed")

    # ---- artifacts

    def _artifacts(self, archive: zipfile.ZipFile, one: Exported, password: str | None) -> Iterator[Finding]:
        packed = f"{one.session_id}/artifacts.zip"
        for it in one.artifacts:
            if it.file is None:
                yield note("artifact", it.sha256, "it was not kept any more when the bundle was made")
            elif it.file != packed:
                self.summary.artifacts += 1
                if self._sizes.get(it.file) != (it.size, it.sha256):
                    yield changed("artifact", it.sha256, "its content is another")
        inside = [it for it in one.artifacts if it.file == packed]
        if not inside:
            return
        try:
            with archive.open(packed) as member, pyzipper.AESZipFile(member) as inner:
                inner.setpassword((password or "").encode())
                for it in inside:
                    self.summary.artifacts += 1
                    if _hash(inner, it.sha256, it.size) != (it.size, it.sha256):
                        yield changed("artifact", it.sha256, "its content is another")
        except _BAD:
            yield changed("file", packed, "it cannot be read")


def _hash(archive: zipfile.ZipFile, name: str, size: int) -> tuple[int, str] | None:
    """Return size and SHA-256 of a member; None if it cannot be read, or unpacks to more than `size` bytes."""
    found, read = hashlib.sha256(), 0
    try:
        with archive.open(name) as member:
            while piece := member.read(_PIECE):
                found.update(piece)
                read += len(piece)
                if read > size:
                    return None
    except _BAD:
        return None
    return read, found.hexdigest()
