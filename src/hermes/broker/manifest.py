"""A manifest: one line of JSON on each entry of a tree that an attacker made (`manifest.jsonl`)."""

import stat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hermes import events

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}  # fmt: skip
"""What an entry can be, by its file type."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a manifest: what stood in the tree at `path`, copied or not. Owner, mode and time are the attacker's."""

    path: str
    """UTF-8 as it is; else bad bytes stand as `\\xNN` and each backslash is doubled, and `raw` holds the bytes."""
    raw: bytes | None = None
    kind: str
    """`file`, `directory`, `link`, `fifo`, `socket`, `character device`, `block device`, or `deleted`: it was the image's."""
    mode: str
    uid: int
    gid: int
    size: int
    mtime: float
    target: str | None = None
    """Where a link leads."""
    same_as: int | None = None
    """The line, counted from 1, of the file that this is another name of (a hard link); it was copied under that one only."""
    opaque: bool = False
    """A directory that replaced the image's, of which nothing shows through."""
    device: str | None = None
    change: str | None = None
    """`added` or `changed`, where that was told; elsewhere it shows by comparing with the image."""
    left_out: str | None = None
    """Why its content is missing or cut short: `bytes`, `depth`, or what the kernel said."""


class Origin(NamedTuple):
    """What a container began as: the directories of its image, upper ones first, and files it was given, by path."""

    layers: tuple[Path, ...] = ()
    given: tuple[tuple[str, bytes], ...] = ()


UNKNOWN = Origin()
"""Nothing is known of it here."""


def named(path: bytes) -> dict[str, Any]:
    """The fields of an entry that say its path."""
    text = events.from_bytes(path)
    return {"path": text} if text.encode(errors="surrogatepass") == path else {"path": text, "raw": path}
