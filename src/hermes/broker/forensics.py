"""Stopped boxes whose changed files are kept: `<directory>/<container_id>/` with `changes/`, `manifest.jsonl` and `facts.json`.

Everything under `changes/` was made by an attacker as root; `hermes.broker.trees` is how it is read.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from hermes import events
from hermes.broker.difference import Differences
from hermes.broker.facts import fact
from hermes.broker.trees import Budget, Copied, measure, remove
from hermes.config.models import ForensicsConfig
from hermes.container.messages import BrokerEvent
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

MAX_ENTRIES = 100_000
"""Entries of one kept container that are counted; a larger one is charged a full share of `max_bytes`."""
BACKLOG = 64
"""Containers kept beyond `count` while older ones are being removed; past it nothing is kept until that is done."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FACTS = "facts.json"
_HELD = ".held"
_REMOVING = ".removing-"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a kept container; times are seconds since the epoch."""

    container_id: str
    session_id: str
    engine: str
    image: str
    created: float
    allocated: float
    stopped: float


class Kept(msgspec.Struct, frozen=True):
    """A kept container, as the limits see it."""

    container_id: str
    stopped: float
    bytes: int


def budget(config: ForensicsConfig) -> Budget:
    """How much of one container's changes is kept."""
    return Budget(bytes=config.box_bytes, entries=config.box_entries, depth=config.box_depth, seconds=config.box_seconds)


def excess(kept: Iterable[Kept], config: ForensicsConfig, now: float) -> list[tuple[Kept, str]]:
    """Which are to go, oldest first, and the limit that says so: `age`, `count` or `bytes`."""
    left = sorted(kept, key=lambda one: one.stopped)
    total = sum(one.bytes for one in left)
    gone: list[tuple[Kept, str]] = []
    for position, one in enumerate(left):
        if now - one.stopped > config.max_age:
            reason = "age"
        elif len(left) - position > config.count:
            reason = "count"
        elif total > config.max_bytes:
            reason = "bytes"
        else:
            break
        gone.append((one, reason))
        total -= one.bytes
    return gone


class Forensics:
    """Keep stopped boxes' changes within the limits of the config, across restarts. One task measures and removes."""

    def __init__(
        self,
        directory: Path,
        config: ForensicsConfig,
        *,
        emit: Callable[[BrokerEvent], None],
        differences: Differences | None = None,
        over: Callable[[str], None] = lambda container_id: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._config = config
        self._emit = emit
        self._differences = differences
        self._over = over
        self._clock = clock
        self._holding: dict[str, float] = {}
        self._held = directory / _HELD
        self._kept: dict[str, Kept] = {}
        self._unmeasured: dict[str, float] = {}  # when it was stopped, by container id
        self._stuck = 0  # could not be removed; tried again at the next start
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._tasks = TaskOwner("forensics")

    @property
    def count(self) -> int:
        """Containers kept."""
        return len(self._kept) + len(self._unmeasured)

    async def start(self) -> list[Facts]:
        """Find what an earlier run kept, and begin to hold the limits. Raises OSError if the directory cannot be used.

        Returns the containers that sessions held when that run died, those first that were given out first.
        """
        self._unmeasured = await asyncio.to_thread(self._scan)
        self._news.set()
        self._tasks.spawn(self._hold_limits(), name="limits")
        return await asyncio.to_thread(self._left)

    def place(self, container_id: str) -> Path | None:
        """Where to keep that container's changes; None if they are neither to be kept nor stated."""
        config = self._config
        if not (config.count and config.max_age and config.max_bytes):
            return self._passing(container_id)
        if self.count + self._stuck > config.count + BACKLOG:
            log.error("container not kept: older ones are not removed fast enough", container_id=container_id)
            return self._passing(container_id)
        return self.directory / container_id

    def _passing(self, container_id: str) -> Path | None:
        """Where changes are only until they are stated."""
        if self._differences is None:
            return None
        pit = self._pit(container_id)
        try:
            pit.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            log.error("changes of a container will not be stated", container_id=container_id, error=str(error))
            return None
        return pit / "1"

    def _pit(self, container_id: str) -> Path:
        return self.directory / f"{_REMOVING}{container_id}"

    async def add(self, facts: Facts, copied: Copied | None = None) -> Path | None:
        """Take what an engine put at `place()` into care, with its facts, and return where it is; None if there is nothing.

        `copied` is what the engine said of it; a budget that did not suffice is stated, and how it differs from the image. Then
        `over` is called with its id: no more is said of it.
        """
        try:
            return await self._add(facts, copied)
        finally:
            self._over(facts.container_id)

    async def _add(self, facts: Facts, copied: Copied | None) -> Path | None:
        kept = self.directory / facts.container_id
        self._state_excess(facts.container_id, copied)
        if not kept.is_dir():
            pit = self._pit(facts.container_id)
            await self._state_differences(facts, pit / "1", copied)
            if pit.is_dir():
                await asyncio.to_thread(self._remove, pit)
            return None
        await self._state_differences(facts, kept, copied)
        try:
            await asyncio.to_thread(_write_facts, kept / _FACTS, facts)
        except OSError as error:
            log.error("facts of a kept container not written", container_id=facts.container_id, error=str(error))
        self._unmeasured[facts.container_id] = facts.stopped
        self._settled.clear()
        self._news.set()
        return kept

    async def _state_differences(self, facts: Facts, place: Path, copied: Copied | None) -> None:
        if self._differences is not None and copied is not None:
            await self._differences.state(facts, place, copied)

    # ---- boxes that sessions hold

    @property
    def held_since(self) -> float | None:
        """When the box was given out that a session holds for longest, or that is not yet kept."""
        return min(self._holding.values(), default=None)

    def hold(self, facts: Facts) -> None:
        """Note that a session has the container now: should this process die, the next `start` finds the note."""
        self._holding[facts.container_id] = facts.allocated
        try:
            self._held.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished = self._held / f".{facts.container_id}"
            unfinished.write_bytes(msgspec.json.encode(facts))
            unfinished.rename(self._held / facts.container_id)
        except OSError as error:
            log.error("container not noted as held", container_id=facts.container_id, error=str(error))

    def forget(self, container_id: str) -> None:
        """No session has it any more, and what there was to keep is kept."""
        self._holding.pop(container_id, None)
        (self._held / container_id).unlink(missing_ok=True)

    def _left(self) -> list[Facts]:
        found = []
        with suppress(FileNotFoundError):
            for path in list(self._held.iterdir()):
                facts = _read_facts(path)
                if facts is not None and facts.container_id == path.name and _NAME.fullmatch(path.name):
                    found.append(facts)
                    self._holding[facts.container_id] = facts.allocated
                else:
                    path.unlink(missing_ok=True)
        return sorted(found, key=lambda one: one.allocated)

    async def clear(self, container_id: str) -> None:
        """Remove what may be there of a container that is to be kept anew."""
        self._unmeasured.pop(container_id, None)
        self._kept.pop(container_id, None)
        if (self.directory / container_id).is_dir():
            await asyncio.to_thread(self._discard, container_id)

    def _state_excess(self, container_id: str, copied: Copied | None) -> None:
        for name in sorted(copied.exceeded) if copied else ():
            setting = f"box_{name}"
            limit, value = f"container_pool.forensics.{setting}", getattr(self._config, setting)
            detail = "not all that changed in the container was kept"
            self._emit(fact(events.LimitReached(limit=limit, value=value, container_id=container_id, detail=detail)))

    async def settled(self) -> None:
        """Return when everything taken into care so far is measured and what is too much removed."""
        await self._settled.wait()

    async def close(self) -> None:
        """Stop; what is kept stays."""
        await self._tasks.close()

    def _scan(self) -> dict[str, float]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: dict[str, float] = {}
        for entry in list(os.scandir(self.directory)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            path = Path(entry.path)
            if entry.name.startswith(_REMOVING):
                self._remove(path)
            elif _NAME.fullmatch(entry.name):
                facts = _read_facts(path / _FACTS)
                found[entry.name] = facts.stopped if facts else entry.stat(follow_symlinks=False).st_mtime
        return found

    async def _hold_limits(self) -> None:
        while True:
            self._news.clear()
            while self._unmeasured:
                container_id, stopped = next(iter(self._unmeasured.items()))
                size = await asyncio.to_thread(self._measure, container_id)
                if self._unmeasured.pop(container_id, None) is not None:  # it was not cleared meanwhile
                    self._kept[container_id] = Kept(container_id, stopped, size)
            for one, reason in excess(self._kept.values(), self._config, self._clock()):
                del self._kept[one.container_id]
                if await asyncio.to_thread(self._discard, one.container_id):
                    self._emit(
                        fact(events.ContainerDiscarded(container_id=one.container_id, reason=reason, bytes=one.bytes)),
                    )
            if not self._news.is_set():
                self._settled.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_next_expiry()):
                    await self._news.wait()

    def _until_next_expiry(self) -> float | None:
        if not self._kept:
            return None
        oldest = min(one.stopped for one in self._kept.values())
        return min(86400.0, max(1.0, oldest + self._config.max_age - self._clock() + 1))

    def _measure(self, container_id: str) -> int:
        share = self._config.max_bytes // max(1, self._config.count)
        try:
            size, _, complete = measure(self.directory / container_id, MAX_ENTRIES)
        except OSError as error:
            log.error("kept container not measured", container_id=container_id, error=str(error))
            return share
        return size if complete else max(size, share)

    def _discard(self, container_id: str) -> bool:
        pit = self._pit(container_id)
        try:
            pit.mkdir(mode=0o700)
            (self.directory / container_id).rename(pit / "1")
        except OSError as error:
            self._stuck += 1
            log.error("kept container not removed", container_id=container_id, error=str(error))
            return False
        return self._remove(pit)

    def _remove(self, pit: Path) -> bool:
        try:
            remove(pit)
        except (OSError, ValueError) as error:
            self._stuck += 1
            log.error("kept container not removed; it is tried again at the next start", path=str(pit), error=str(error))
            return False
        return True


def _write_facts(path: Path, facts: Facts) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(facts))


def _read_facts(path: Path) -> Facts | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Facts)
    except (OSError, msgspec.DecodeError):
        return None
