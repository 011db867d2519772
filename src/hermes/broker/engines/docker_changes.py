"""What an attacker changed in a stopped Docker container, brought to a directory of ours.

Where the daemon's files are ours to reach, the overlay's upper directory is copied as that of any other box. Otherwise Docker's
list of changes is fetched file by file, from archives whose names and links are the attacker's: nothing is ever written through a
link, because links are made last.
"""

import asyncio
import base64
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import msgspec
import structlog
from aiodocker import Docker, DockerError

from hermes.broker import boxfs
from hermes.broker.engines.docker_disk import lower_directories, upper_directory
from hermes.broker.manifest import Entry, Origin, named
from hermes.broker.trees import Budget, Copied

log = structlog.get_logger(__name__)

MAX_ARCHIVES = 2000
"""Archives fetched of one container at most."""
_MODIFIED, _ADDED, _DELETED = 0, 1, 2
_KINDS = {
    tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}  # fmt: skip
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of one stopped container; `details` are what Docker said of it. No more is copied than the budget allows."""

    docker: Docker
    container: str
    details: dict[str, Any]
    budget: Budget

    async def keep(self, directory: Path) -> Copied:
        """Bring them to `directory`/changes, which becomes root's alone. OSError, or what aiodocker raises, if that fails."""
        upper = upper_directory(self.details)
        if upper is not None:
            origin = Origin(lower_directories(self.details))
            return await asyncio.to_thread(boxfs.keep, upper, directory, self.budget, origin=origin)
        await asyncio.to_thread(_prepare, directory)
        with (directory / "manifest.jsonl").open("xb") as manifest:
            tree = Tree(directory / "changes", manifest, self.budget.entries)
            await asyncio.to_thread(tree.root.mkdir, 0o700)
            copied = await self._fetch(tree)
            await asyncio.to_thread(tree.link)
        copied.entries = tree.entries
        if tree.entries >= self.budget.entries:
            copied.exceeded.add("entries")
        return copied

    async def _fetch(self, tree: "Tree") -> Copied:
        copied = Copied()
        changes = await self.docker._query_json(f"containers/{self.container}/changes") or []
        tree.modified = {str(change["Path"]).lstrip("/") for change in changes if change["Kind"] == _MODIFIED}
        for change in changes:
            if change["Kind"] == _DELETED:
                tree.note(os.fsencode(str(change["Path"]).lstrip("/")), kind="deleted")
        for path, known_file in wanted(changes):
            left = self.budget.bytes - copied.bytes
            if left <= 0 or copied.entries >= min(MAX_ARCHIVES, self.budget.entries):
                copied.exceeded.add("bytes" if left <= 0 else "entries")
                break
            copied.entries += 1
            try:
                if known_file or not await self._is_directory(path):
                    copied.bytes += await self._fetch_one(path, left, tree)
            except DockerError as error:
                if error.status != 404:  # its name was no UTF-8, so Docker's list does not tell it
                    raise
                copied.unreadable += 1
        if copied.bytes > self.budget.bytes:
            copied.exceeded.add("bytes")
        return copied

    async def _is_directory(self, path: str) -> bool:
        async with self.docker._query(f"containers/{self.container}/archive", "HEAD", params={"path": path}) as response:
            told = json.loads(base64.b64decode(response.headers.get("X-Docker-Container-Path-Stat", "")) or b"{}")
        return bool(int(told.get("mode", 0)) & 1 << 31)

    async def _fetch_one(self, path: str, limit: int, tree: "Tree") -> int:
        """Fetch a file or directory; return how many bytes came, at most about `limit`."""
        with tempfile.TemporaryFile(dir=tree.root.parent) as spool:
            size = 0
            async with self.docker._query(f"containers/{self.container}/archive", params={"path": path}) as response:
                async for block in response.content.iter_chunked(_BLOCK):
                    size += len(block)
                    if size > limit:
                        break
                    await asyncio.to_thread(spool.write, block)
                else:
                    response.release()
                response.close()
            spool.seek(0)
            await asyncio.to_thread(tree.unpack, spool, PurePosixPath(path).parent)
        return size


def wanted(changes: Iterable[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """What to fetch of Docker's list: what was added (with all below it), and what was modified, unless it has changes below it.

    Yields path and whether to take it unseen; the others may be directories of which only the date changed.
    """
    kinds = {str(change["Path"]): int(change["Kind"]) for change in changes}
    parents = {str(parent) for path in kinds for parent in PurePosixPath(path).parents}
    for path, kind in kinds.items():
        if kind == _ADDED and kinds.get(str(PurePosixPath(path).parent)) != _ADDED:
            yield path, True
        elif kind == _MODIFIED and path not in parents:
            yield path, False


class Tree:
    """A directory that archives of hostile names and links are unpacked into. Nothing in it is ever followed.

    What there was is noted in the manifest, up to so many entries.
    """

    def __init__(self, root: Path, manifest: BinaryIO, max_entries: int) -> None:
        self.root = root
        self.entries = 0
        self.modified: set[str] = set()
        """Paths of what the image has too, as far as it is known."""
        self._manifest = manifest
        self._max_entries = max_entries
        self._links: list[tuple[Path, str]] = []

    def unpack(self, archive: IO[bytes], below: PurePosixPath) -> None:
        """Take what can be taken of a tar archive, also if it is cut short: files and directories; links come last."""
        with suppress(tarfile.TarError), tarfile.open(fileobj=archive, mode="r:", errorlevel=2) as members:
            for member in members:
                place = self._place(below / member.name)
                if place is not None and self.entries < self._max_entries:
                    self._note_member(member, place)
                    with suppress(OSError):
                        self._take(members, member, place, below)

    def note(self, path: bytes, **more: Any) -> None:
        """Write a line of the manifest, if there may be one more."""
        if self.entries < self._max_entries:
            self.entries += 1
            known: dict[str, Any] = {"mode": "", "uid": 0, "gid": 0, "size": 0, "mtime": 0.0} | more
            self._manifest.write(msgspec.json.encode(Entry(**named(path), **known)) + b"\n")

    def _note_member(self, member: tarfile.TarInfo, place: Path) -> None:
        path = place.relative_to(self.root)
        self.note(
            os.fsencode(path),
            change="changed" if str(path) in self.modified else "added",
            kind=_KINDS.get(member.type, "file"),
            mode=f"{member.mode & 0o7777:04o}",
            uid=member.uid,
            gid=member.gid,
            size=member.size,
            mtime=float(member.mtime),
            target=named(os.fsencode(member.linkname))["path"] if member.issym() else None,
        )

    def link(self) -> None:
        """Make the links that were asked for."""
        for place, target in self._links:
            with suppress(OSError, ValueError):
                place.symlink_to(target)
        self._links.clear()

    def _place(self, name: PurePosixPath) -> Path | None:
        parts = [part for part in name.parts if part != "/"]
        return None if not parts or ".." in parts else self.root.joinpath(*parts)

    def _take(self, members: tarfile.TarFile, member: tarfile.TarInfo, place: Path, below: PurePosixPath) -> None:
        (place if member.isdir() else place.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        if member.issym():
            self._links.append((place, member.linkname))
        elif member.islnk():
            if (first := self._place(below / member.linkname)) is not None:
                os.link(first, place, follow_symlinks=False)
        elif member.isreg() and (source := members.extractfile(member)) is not None:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with source, os.fdopen(fd, "wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    os.chown(directory, 0, 0)
