"""Seal each session's evidence once it is complete: its manifest goes into the chain, and a `session.sealed` into the journal.

One task of the front's; what blocks is done in a thread. A manifest is on the disk before it is stated, and what it covers is on
the disk before it is: so a chain is never ahead of its evidence, and whatever was killed, each session is sealed once.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import structlog

from hermes.config import Settings
from hermes.errors import HermesError, JournalError
from hermes.events import EvidenceRemoved, SessionSealed
from hermes.evidence import chain, manifest
from hermes.evidence.chain import Head
from hermes.evidence.manifest import Manifest
from hermes.evidence.sealing import seal
from hermes.store import Journal, database

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.5
"""How long sessions gather before they are sealed: some at once cost little more than one, most of it is the disk's."""
BATCH = 64
CHAIN_SHARE = 8
"""The chain may take that part of what the journal may, besides it; then the older half of it goes."""
RETRY_SECONDS = 5.0
CLOSE_SECONDS = 10.0
"""How long it may take to seal what is left when the sensor stops. What is not done then is done at the next start."""
LEFT_SECONDS = 10.0
"""How long sessions that an earlier run left wait for what was seen in their containers, unless that is there sooner."""
CLOSED = "SELECT session_id FROM sessions WHERE sealed IS NULL AND ended IS NOT NULL ORDER BY id"
_LAST = (
    "SELECT body ->> '$.sequence', body ->> '$.manifest', body ->> '$.through' FROM events"
    " WHERE session_id = (SELECT session_id FROM sessions WHERE sealed > 0 ORDER BY sealed DESC LIMIT 1)"
    " AND event = 'session.sealed' ORDER BY id DESC LIMIT 1"
)


class _Found(NamedTuple):
    """What an earlier run left: the chain's end, manifests that were not stated, and sessions that are over and have none."""

    head: Head
    unstated: list[Manifest]
    unsealed: list[str]


class Sealer:
    """Seals sessions in the order in which they are settled."""

    def __init__(self, settings: Settings, journal: Journal, *, unsettled: Callable[[], Collection[str]] = frozenset) -> None:
        """`unsettled`: ids of sessions whose evidence is not complete yet, and will be: `settled` is called."""
        self._path = journal.path.with_name(chain.NAME)
        self._recordings = settings.recordings_dir if settings.recording.enabled else None
        self._limit = settings.evidence.max_journal_bytes // CHAIN_SHARE
        self._journal = journal
        self._unsettled = unsettled
        self._head = Head()
        self._waiting: deque[str] = deque()
        self._left: dict[str, None] = {}
        """Sessions of an earlier run that are over, and may be settled or not."""
        self._unstated: deque[Manifest] = deque()
        """In the chain, not in the journal yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._more = asyncio.Event()
        self._lock = asyncio.Lock()
        self._trouble = ""

    @property
    def pending(self) -> frozenset[str]:
        """Ids of the sessions that are settled and not sealed yet: nothing of them may go."""
        return frozenset((*self._waiting, *self._left))

    def settled(self, session_id: str) -> None:
        """The session's evidence is complete: seal it."""
        self._left.pop(session_id, None)
        if session_id not in self._waiting:
            self._waiting.append(session_id)
            self._more.set()

    async def start(self) -> None:
        """Take up the chain where an earlier run left it, state what that had not come to state, and seal what it had not.

        Raises JournalError when the chain cannot be read.
        """
        try:
            found = await asyncio.to_thread(self._find)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"the chain of manifests cannot be read: {error}") from error
        self._head = found.head
        self._unstated += found.unstated
        self._state_all()
        if found.unsealed:
            self._left = dict.fromkeys(found.unsealed)
            self._timer = asyncio.get_running_loop().call_later(LEFT_SECONDS, self._settle_left)

    def _settle_left(self) -> None:
        unsettled = set(self._unsettled())
        for session_id in [it for it in self._left if it not in unsettled]:
            self.settled(session_id)

    async def run(self) -> None:
        """Seal what is settled, until cancelled."""
        while True:
            await self._more.wait()
            await asyncio.sleep(GATHER_SECONDS)
            if not await self._seal_some():
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Seal what is settled and not sealed, as far as there is time for it."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._waiting and await self._seal_some():
                    pass
                async with self._lock:  # what is under way comes to its end
                    self._closed = True
        self._closed = True  # a thread may still be at it, and nobody can stop it: nothing is begun besides

    async def _seal_some(self) -> bool:
        """Seal a batch; return False where it could not be done."""
        async with self._lock:
            if self._closed:
                return True
            try:
                await self._seal(list(islice(self._waiting, BATCH)))
            except (OSError, sqlite3.Error, HermesError, MemoryError, RuntimeError) as error:  # RuntimeError: no thread
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    log.error("sessions cannot be sealed; it is tried again", reason=self._trouble, sessions=len(self._waiting))
                self._more.set()
                return False
            self._trouble = ""
            return True

    async def _seal(self, session_ids: list[str]) -> None:
        await self._journal.wait_written()
        made = await asyncio.to_thread(self._make, session_ids)
        if made:
            self._head = chain.head_of(made[-1])
        self._unstated += made
        for _ in session_ids:
            self._waiting.popleft()
        if not self._waiting:
            self._more.clear()
        self._state_all()
        await self._hold()

    async def _hold(self) -> None:
        """Keep the chain within its limit. What goes is stated first, and a cut that a kill prevented is made later."""
        ends = await asyncio.to_thread(chain.excess, self._path, self._limit)
        if not ends:
            return
        first, last = (one.sequence for one in ends)
        size = self._path.stat().st_size - self._limit // 2
        self._journal.emit(
            EvidenceRemoved(what="manifests", path=f"{first}-{last}", reason="evidence.max_journal_bytes", bytes=size)
        )
        await self._journal.wait_written()
        await asyncio.to_thread(chain.cut, self._path, last)

    def _state_all(self) -> None:
        while self._unstated:
            self._state(self._unstated[0])
            self._unstated.popleft()

    def _state(self, one: Manifest) -> None:
        self._journal.emit(
            SessionSealed(
                connection_id=one.connection_id, session_id=one.session_id, sequence=one.sequence,
                manifest=manifest.digest(manifest.encode(one)), previous=one.previous, through=one.through,
                files=len(one.recordings), events=one.events.count,
            )
        )  # fmt: skip

    # ---- in a thread

    def _make(self, session_ids: list[str]) -> list[Manifest]:
        made: list[Manifest] = []
        head = self._chained(self._head)
        db = database.connect(self._journal.path, mode="ro", busy_timeout=1)
        try:
            db.execute("BEGIN")
            for session_id in session_ids:
                if (
                    not _is_sealed(db, session_id)
                    and (one := seal(db, self._recordings, session_id, self._journal.sensor, head)) is not None
                ):
                    made.append(one)
                    head = chain.head_of(one)
        finally:
            db.close()
        if made:
            _sync_journal(self._journal.path)
            chain.append(self._path, made)
        return made

    def _chained(self, head: Head) -> Head:
        """Return the chain's end as it is on disk, when an append failed halfway. Cuts off what is torn."""
        if self._trouble and (last := chain.tail(self._path, 1)) and (one := manifest.decode(last[0])) is not None:
            return chain.head_of(one) if one.sequence >= head.sequence else head
        return head

    def _find(self) -> _Found:
        last = [one for line in chain.tail(self._path, BATCH) if (one := manifest.decode(line)) is not None]
        head = chain.head_of(last[-1]) if last else Head()
        unstated: list[Manifest] = []
        db = database.connect(self._journal.path, mode="ro", busy_timeout=1)
        try:
            db.execute("BEGIN")
            identity = str(db.execute("SELECT identity FROM journal").fetchone()[0])
            for one in reversed(last):
                if one.journal != identity or _is_sealed(db, one.session_id):
                    break
                unstated.insert(0, one)
            stated = db.execute(_LAST).fetchone()
            if stated is not None and stated[0] > head.sequence:
                log.error(
                    "manifests are missing at the end of the chain", path=str(self._path), last=head.sequence, stated=stated[0]
                )
                head = Head(stated[0], stated[1], identity, stated[2])
            sealed = {one.session_id for one in unstated}
            unsealed = [session_id for (session_id,) in db.execute(CLOSED) if session_id not in sealed]
        finally:
            db.close()
        return _Found(head, unstated, unsealed)


def _is_sealed(db: sqlite3.Connection, session_id: str) -> bool:
    """Whether the journal states a manifest of the session, or has nothing of it any more."""
    row = db.execute("SELECT sealed FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return row is None or row[0] is not None


def _sync_journal(path: Path) -> None:
    """Bring to the disk what is committed; what was moved from the log into the database is there already."""
    with contextlib.suppress(FileNotFoundError):
        log_file = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(log_file)
        finally:
            os.close(log_file)
