"""The chain of manifests on disk: a line each, appended and never changed. One writer, any number of readers."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hermes.evidence import manifest
from hermes.evidence.manifest import MAX_LINE, Manifest

NAME = "manifests.jsonl"
"""The file, in the journal's directory."""
_PIECE = 64 * 1024


class Head(NamedTuple):
    """The chain's end: its last manifest's number and hash, and up to which event of which journal it covers."""

    sequence: int = 0
    hash: str = ""
    journal: str = ""
    through: int = 0


def head_of(last: Manifest) -> Head:
    """Return the end of a chain that ends with this manifest."""
    return Head(last.sequence, manifest.digest(manifest.encode(last)), last.journal, last.through)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line without its newline, with the place it begins at; a torn last one is left out. Raises OSError."""
    if not path.exists():
        return
    with open(path, "rb", opener=_no_link) as file:
        at = 0
        while line := file.readline(MAX_LINE):
            if line.endswith(b"\n"):
                yield at, line[:-1]
            at += len(line)


def tail(path: Path, count: int) -> list[bytes]:
    """Return the last lines, at most so many, without their newlines, and cut off a torn one: only for the writer."""
    if not path.exists():
        return []
    with open(path, "r+b", opener=_no_link) as file:
        at = end = file.seek(0, os.SEEK_END)
        data = b""
        while at and data.count(b"\n") <= count and len(data) <= MAX_LINE:
            at = max(0, at - _PIECE)
            file.seek(at)
            data = file.read(min(_PIECE, end - at - len(data))) + data
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            file.truncate(at + whole)
            _sync(file)
        found = data[:whole].split(b"\n")[:-1]
        return found[-count:] if at == 0 or len(found) > count else found[1:][-count:]


def append(path: Path, manifests: Sequence[Manifest]) -> None:
    """Write manifests to the chain's end, on the disk itself. Raises OSError; then the chain is as it was, if that can be."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    new = not path.exists()
    left = memoryview(b"".join(manifest.encode(one) + b"\n" for one in manifests))
    with os.fdopen(os.open(path, flags, 0o640), "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    if new:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def excess(path: Path, limit: int) -> list[Manifest]:
    """Return the first and the last of the manifests that go from a chain longer than `limit` bytes, of which half as many stay;
    none where it is not longer."""
    over = path.stat().st_size - limit // 2 if path.exists() and path.stat().st_size > limit else 0
    ends: list[Manifest] = []
    for at, line in lines(path):
        if at + len(line) >= over:
            break
        if (one := manifest.decode(line)) is not None:
            ends = [*ends[:1], one]
    return ends if len(ends) == 2 else []


def cut(path: Path, through: int) -> None:
    """Leave out the manifests up to that number; at any moment the chain is the old one or the new one. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with open(new, "wb", opener=_private) as file:
        kept = False
        for _, line in lines(path):
            kept = kept or ((one := manifest.decode(line)) is not None and one.sequence > through)
            if kept:
                file.write(line + b"\n")
        _sync(file)
    new.replace(path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
