"""What a session changed in its box, stated when the box is gone: each entry that differs from the image, by the manifest of what
was kept of it. The contents of its files become artifacts.

The attacker's tree is not walked again: what is read is the copy that is root's own (`hermes.broker.trees`).
"""

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from hermes import events
from hermes.broker.artifacts import NO_TIME, Budgets, Content, Skipped, Store
from hermes.broker.facts import fact
from hermes.broker.linux import open_beneath
from hermes.broker.manifest import Entry, Origin
from hermes.broker.trees import Copied
from hermes.container.messages import BrokerEvent

log = structlog.get_logger(__name__)

BATCH = 200
"""Events stated at once."""
PATIENCE = 20.0
"""Seconds to wait for a front that does not take what is stated."""
_MAX_LINE = 64 * 1024
_KINDS = {
    "link": "symlink", "character device": "device", "block device": "device", "directory": "directory", "file": "file",
    "fifo": "fifo", "socket": "socket", "deleted": "",
}  # fmt: skip
_BELOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Spool = Callable[[str], Callable[[events.Event, int], None] | None]
"""Where the facts of a container go on their way to the journal, by its id; None: it has no spool (any more)."""


class Held(Protocol):
    """What is known of a container that a session had."""

    @property
    def container_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def allocated(self) -> float: ...


class Differences:
    """States what changed in boxes that are gone. `most` is how many events one may cause.

    They go into the box's spool; where there is none, `emit` is called while there is `room`.
    """

    def __init__(
        self,
        budgets: Budgets,
        most: int,
        *,
        emit: Callable[[BrokerEvent], None],
        spool: Spool = lambda container_id: None,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._budgets = budgets
        self._most = most
        self._emit = emit
        self._spool = spool
        self._room = room

    async def state(self, facts: "Held", directory: Path, copied: Copied) -> None:
        """State what `directory` holds of the container."""
        if not self._most or not (directory / "manifest.jsonl").exists():
            return
        found = self._bounded(facts.container_id, facts.allocated, directory, copied.origin)
        try:
            while batch := await asyncio.to_thread(lambda: list(islice(found, BATCH))):
                await self._say(facts.container_id, facts.session_id, batch)
        except (OSError, msgspec.MsgspecError, TimeoutError) as error:
            reason = str(error) or "the front does not take them"
            log.error("differences of a container were not all stated", container_id=facts.container_id, reason=reason)
            self._emit(fact(events.EngineFailed(engine=facts.engine, operation="compare", reason=reason)))

    async def _say(self, container_id: str, session_id: str, batch: list[events.Event]) -> None:
        now = time.time_ns() // 1000
        spool = self._spool(container_id)
        for event in batch:
            if spool is not None:
                spool(event, now)
            else:
                async with asyncio.timeout(PATIENCE):
                    while not self._room():  # noqa: ASYNC110 - nobody tells when there is
                        await asyncio.sleep(0.05)
                self._emit(fact(msgspec.structs.replace(event, session_id=session_id)))

    def _bounded(self, container_id: str, since: float, directory: Path, origin: Origin) -> Iterator[events.Event]:
        """Yield up to `most` differences, with what comes of them. Blocks."""
        limits: list[tuple[str, int]] = []
        stated = beyond = 0
        with ExitStack() as stack:
            store = Store(self._budgets, container_id, lambda name, value: limits.append((name, value)))
            stack.callback(store.close)
            compared = stack.enter_context(_Compared(container_id, since, directory, origin, store))
            for entry in _entries(directory / "manifest.jsonl"):
                if stated < self._most:
                    for event in compared.events(entry):
                        stated += isinstance(event, events.FileChanged)
                        yield event
                else:
                    beyond += 1
        for name, value in dict(limits).items():
            yield _limit(container_id, name, value, "not all files that were left are kept")
        if beyond:
            yield _limit(container_id, "session_changes", self._most, f"{beyond} more entries of the container are not compared")


def _limit(container_id: str, name: str, value: int, detail: str) -> events.LimitReached:
    return events.LimitReached(limit=f"artifacts.{name}", value=value, container_id=container_id, detail=detail)


def _entries(manifest: Path) -> Iterator[Entry]:
    decode = msgspec.json.Decoder(Entry).decode
    with manifest.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            yield decode(line)


class _Compared:
    """Entries of one manifest beside the image that the container was made from."""

    def __init__(self, container_id: str, since: float, directory: Path, origin: Origin, store: Store) -> None:
        self._container = container_id
        self._since = since
        self._origin = origin
        self._given = dict(origin.given)
        self._store = store
        self._deadline = time.monotonic() + store.budgets.end_seconds
        self._stack = ExitStack()
        self._changes = self._open(directory / "changes")
        # (A container's own first layer goes with it; what it holds shows in no difference.)
        self._layers = [self._open(layer) for layer in origin.layers if layer.is_dir()]
        self._line = 0
        self._new: set[bytes] = set()  # directories of which nothing is the image's
        self._contents: dict[int, Content | str] = {}
        self._stored: set[str] = set()

    def __enter__(self) -> "_Compared":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def events(self, entry: Entry) -> Iterator[events.Event]:
        """What is to be stated of the next line; nothing where nothing differs."""
        self._line += 1
        path = entry.path.encode() if entry.raw is None else entry.raw
        before = self._before(path)
        if entry.kind == "directory" and (entry.opaque or before is None or not stat.S_ISDIR(before.st_mode)):
            self._new.add(path)
        change = self._change(entry, before)
        if change is None or self._is_as_given(entry, path):
            return
        content = self._content(entry, path) if entry.kind == "file" else None
        kept, skipped = (content, entry.left_out) if isinstance(content, Content) else (None, content or entry.left_out)
        mode = int(entry.mode, 8) if entry.mode else 0
        deleted = entry.kind == "deleted"
        size = kept.size if kept is not None else 0 if deleted else entry.size
        yield events.FileChanged(
            container_id=self._container, change=change, kind=_KINDS.get(entry.kind, ""), path=f"/{entry.path}",
            mode=0 if deleted else mode, uid=0 if deleted else entry.uid, gid=0 if deleted else entry.gid,
            size=size, sha256=kept and kept.sha256, target=entry.target, skipped=skipped,
        )  # fmt: skip
        if kept is not None and kept.sha256 not in self._stored and (kept.seen is None or kept.seen < self._since):
            self._stored.add(kept.sha256)
            yield events.ArtifactStored(
                container_id=self._container, sha256=kept.sha256, sha1=kept.sha1, md5=kept.md5, size=kept.size,
                path=f"/{entry.path}", source="left", known=kept.known,
            )  # fmt: skip

    def _change(self, entry: Entry, before: os.stat_result | None) -> str | None:
        """How it differs; None: a directory that is there only for what is in it."""
        if entry.kind == "deleted":
            return "deleted"
        if entry.change is not None:
            return entry.change
        if before is None:
            return "added"
        if entry.kind == "directory" and stat.S_ISDIR(before.st_mode) and not entry.opaque:
            as_it_was = (int(entry.mode, 8), entry.uid, entry.gid) == (stat.S_IMODE(before.st_mode), before.st_uid, before.st_gid)
            return None if as_it_was else "changed"
        return "changed"

    def _before(self, path: bytes) -> os.stat_result | None:
        """What the image had there."""
        if self._new and any(path[:at] in self._new for at, byte in enumerate(path) if byte == 0x2F):
            return None
        for layer in self._layers:
            try:
                fd = open_beneath(layer, os.fsdecode(path), _LOOK)
            except FileNotFoundError:
                continue
            except OSError:  # something else stands in its way
                return None
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            return None if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else status
        return None

    def _is_as_given(self, entry: Entry, path: bytes) -> bool:
        content = self._given.get(entry.path)
        if content is None or entry.kind != "file" or entry.size != len(content):
            return False
        try:
            fd = open_beneath(self._changes, os.fsdecode(path), _BELOW)
        except OSError:
            return False
        try:
            return os.read(fd, len(content) + 1) == content
        finally:
            os.close(fd)

    def _content(self, entry: Entry, path: bytes) -> Content | str | None:
        """What is kept of a file, or why it is not."""
        if entry.same_as is not None:
            return self._contents.get(entry.same_as)
        if entry.left_out is not None:
            return entry.left_out
        outcome = NO_TIME if time.monotonic() > self._deadline else self._keep(path, entry.size)
        self._contents[self._line] = outcome
        return outcome

    def _keep(self, path: bytes, size: int) -> Content | str:
        try:
            self._store.admit(size)
            fd = open_beneath(self._changes, os.fsdecode(path), _BELOW)
        except Skipped as skipped:
            return str(skipped)
        except OSError as error:
            return error.strerror or "unknown error"
        try:
            copying = self._store.copying(fd)
            while (outcome := copying.step()) is None:
                pass
            return outcome
        finally:
            os.close(fd)
