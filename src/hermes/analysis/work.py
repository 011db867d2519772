"""The analyst's work: read what is new in the journal, give it to the stages, and let go what is old; step by step."""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Sequence

import msgspec
import structlog

from hermes.analysis.commands import Commands
from hermes.analysis.documents import Documents
from hermes.analysis.index import Index, IndexDamaged
from hermes.analysis.stage import Stage, Working
from hermes.analysis.stats import Stats
from hermes.analysis.sweep import Sweep
from hermes.analysis.visits import Visits, micros
from hermes.config import Settings
from hermes.container import Report
from hermes.errors import AnalysisError, JournalError
from hermes.store import StoredEvent, cursors
from hermes.store.cursors import Cursor
from hermes.store.follow import Follower, Position

_NO_EVENT = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What reading a row raises that holds no event."""

log = structlog.get_logger(__name__)

BATCH_EVENTS = 1000
"""Events of one transaction, at most."""
POLL_SECONDS = 0.2
"""Between two looks for new events."""
TELL_SECONDS = 1.0
"""Between two times that it tells others how far it is."""
RETRY_SECONDS = 2.0
"""After which what failed is tried again."""


def stages(settings: Settings) -> list[Stage]:
    """What is searched and counted, in the order in which they take a batch: one may read what those before it wrote."""
    return [Visits(), Documents(settings.recordings_dir, settings.analysis.output_bytes), Commands(), Stats()]


class Analyst:
    """Follows one journal with one index. Blocks; for one thread at a time."""

    def __init__(self, settings: Settings, stages: Sequence[Stage]) -> None:
        self.index = Index(settings.index_path, stages)
        self._workers = [it for it in stages if isinstance(it, Working)]
        self._settings = settings
        self._follower = Follower(settings.journal_path)
        self._sweep = Sweep(self.index, settings.journal_path, settings.analysis.max_bytes)
        self._waiting: list[StoredEvent] = []
        self._trouble = ""
        self._broken = ""
        self._checked = False
        self._told = (0.0, Position())

    def open(self) -> None:
        """Open the index. Raises AnalysisError where that cannot be."""
        self.index.open()
        self._begin()

    def close(self) -> None:
        """Give up index and journal."""
        self._follower.close()
        self.index.close()

    def step(self) -> float:
        """Do one piece of work, of a second or so (half a minute where a file is hard to look at); return the seconds to wait
        before the next. Raises a HermesError only when it has to be started afresh."""
        try:
            pause = self._step()
        except IndexDamaged as error:
            self._broken = str(error)
            return 0.0
        except (AnalysisError, JournalError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("the analyst cannot go on; it tries again", reason=self._trouble)
            return RETRY_SECONDS
        self._trouble = ""
        return pause

    def _begin(self) -> None:
        self._waiting, self._broken, self._checked = [], "", False
        self._follower.close()
        self._follower = Follower(self._settings.journal_path, after=self.index.position)

    def _step(self) -> float:
        if not self._checked and not self._broken and self.index.journal:
            self._broken = self._contradiction()
            self._checked = True
        if self._broken:
            self.index.begin_anew(self._broken)
            self._begin()
        if not self._waiting:
            self._waiting = self._read()
        if events := self._waiting:
            self.index.take(self._follower.position, events)
            self._waiting = []
            if any(it.event == "evidence.removed" and it.body.get("what") == "journal" for it in events):
                self._sweep.ask()
        self._tell()
        more = self._sweep.step()
        for worker in self._workers:
            more |= self.index.work(worker)
        return 0.0 if events or more else POLL_SECONDS

    def _read(self) -> list[StoredEvent]:
        """The journal's next events. What stands there and is no event, as no journal's writer writes it, is left out."""
        limit = 1 if self.index.careful else BATCH_EVENTS
        while True:
            try:
                return self._follower.read(limit)
            except _NO_EVENT as error:
                if limit == 1:
                    at = self._follower.position
                    log.error("what stands in the journal is no event", after=at.id, reason=str(error)[:200])
                    self._follower.position = Position(at.journal, at.id + 1)
                limit = 1

    def _tell(self) -> None:
        """Write down, for the metrics, how far the index is."""
        when, what = self._told
        if self.index.position != what and time.monotonic() - when >= TELL_SECONDS:
            self._told = (time.monotonic(), self.index.position)
            with contextlib.suppress(OSError):  # the index itself knows
                cursors.save(self._settings.index_dir, "analyst", Cursor(journal=self.index.journal, id=self.index.position.id))

    def _contradiction(self) -> str:
        """Why the index is not of the journal that is there: after a power cut, that may lack what the index has of it."""
        last, mark = self._follower.last(), self.index.mark
        if mark is None or last.journal != self.index.journal:
            return ""
        found = Follower(self._settings.journal_path, after=Position(last.journal, mark.id - 1)).read(1)
        if last.id < mark.id or (found and found[0].id == mark.id and micros(found[0].time) != mark.time):
            return "the journal is not what it was"
        return ""


async def run(settings: Settings, report: Report, insight: Sequence[Stage] = ()) -> None:
    """Keep the index up to date until cancelled. `insight`: the stages that need more than the settings to be made."""
    if not settings.analysis.enabled:
        report("ready")
        await asyncio.Event().wait()
    analyst = Analyst(settings, [*stages(settings), *insight])
    with concurrent.futures.ThreadPoolExecutor(1, "analyst") as thread:  # at the end it waits for the step that is being done
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(thread, analyst.open)
        try:
            report("ready")
            while True:
                if pause := await loop.run_in_executor(thread, analyst.step):
                    await asyncio.sleep(pause)
        finally:
            thread.submit(analyst.close)
