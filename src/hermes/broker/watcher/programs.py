"""What processes of a box execute: stated before it happens, its outcome when it shows, and their ends."""

import heapq
import time
from collections.abc import Callable
from typing import NamedTuple

from hermes import events
from hermes.broker.watcher import kernel, memory
from hermes.broker.watcher.kernel import IdMap, Info
from hermes.broker.watcher.lookup import Lookup, descriptor_of
from hermes.broker.watcher.notify import Notification
from hermes.broker.watcher.processes import Process, Processes, how_it_ended, signal_name
from hermes.broker.watcher.writer import Writer
from hermes.container import spool
from hermes.container.spool import Decided
from hermes.events import from_bytes

LOOKS = (0.003, 0.03, 0.3, 3.0)
"""Seconds after a program was to be executed at which it is looked whether it was."""
MAX_PATH = 4096


class Limits(NamedTuple):
    """How much is kept of the arguments of one program."""

    arguments: int
    argument_bytes: int


class Asked(NamedTuple):
    """A program that is about to be executed."""

    process: Process
    told: Info
    program: bytes
    argv: list[bytes]
    truncated: bool
    cwd: bytes
    foretold: str | None
    descriptor: int | None
    """It is named by a descriptor of the process's, and may have no other name."""


class Programs:
    """Reads what waits, states it, and finds out what came of it."""

    def __init__(
        self, container_id: str, processes: Processes, writer: Writer, lookup: Lookup, ids: tuple[IdMap, IdMap], limits: Limits
    ) -> None:
        self.on_executed: Callable[[int], None] = lambda pid: None
        """Called with the pid of a process that has executed something."""
        self._container_id = container_id
        self._processes = processes
        self._writer = writer
        self._lookup = lookup
        self._uid, self._gid = ids
        self._limits = limits
        self._refs = 0
        self._undecided: dict[int, Process] = {}  # by ref
        self._looks: list[tuple[float, int]] = []  # a heap: when what is looked at

    def read(self, asked: Notification, mem: int, cwd: bytes, *, at: bool) -> Asked | None:
        """What the thread is about to execute; None if it is gone."""
        found = self._processes.find(asked.tid)
        if found is None:
            return None
        process, told = found
        name, array = (asked.b, asked.c) if at else (asked.a, asked.b)
        program, cut = memory.string(mem, name, MAX_PATH)
        limits = self._limits
        argv, truncated = memory.strings(mem, array, count=limits.arguments, limit=limits.argument_bytes)
        if at:
            foretold = self._lookup.at(asked.tid, asked.a & 0xFFFFFFFF, program, cwd)
            program = program or b"/proc/self/fd/%d" % (asked.a & 0xFFFFFFFF)
        else:
            foretold = "ENAMETOOLONG" if cut else self._lookup.program(asked.tid, program, cwd)
        return Asked(process, told, program, argv, truncated or cut, cwd, foretold, descriptor_of(program))

    def state(self, it: Asked) -> None:
        """State it: it is about to happen."""
        process = it.process
        now = time.time_ns() // 1000
        decided = self._decide_now(process) if process.ref else None
        self._refs += 1
        event = events.ProcessStarted(
            container_id=self._container_id,
            channel=process.channel,
            pid=process.number,
            parent=self._processes.number_of(it.told.parent),
            uid=self._uid(it.told.uid),
            gid=self._gid(it.told.gid),
            program=from_bytes(it.program),
            argv=[from_bytes(argument) for argument in it.argv],
            truncated=it.truncated,
            cwd=from_bytes(it.cwd),
        )
        fact = spool.fact(event, now, self._refs)
        self._writer.write(*([decided] if decided else ()), fact)
        process.image = kernel.image(process.pid) if process.executed else b""
        process.ref, process.foretold, process.looks = self._refs, it.foretold, 0
        if it.foretold is None:
            process.began = now
        self._undecided[process.ref] = process
        heapq.heappush(self._looks, (time.monotonic() + LOOKS[0], process.ref))

    # ---- what came of it

    def next_look(self) -> float | None:
        """Seconds until something is to be looked at."""
        while self._looks and self._looks[0][1] not in self._undecided:
            heapq.heappop(self._looks)
        return max(0.0, self._looks[0][0] - time.monotonic()) if self._looks else None

    def look(self) -> None:
        """Look at what is due."""
        now = time.monotonic()
        outcomes: dict[int, str | None] = {}
        while self._looks and self._looks[0][0] <= now:
            _, ref = heapq.heappop(self._looks)
            if (process := self._undecided.pop(ref, None)) is None:
                continue
            seen = self._seen(process)
            if seen is True:
                self._executed(process)
                outcomes[ref] = None
            elif process.looks + 1 < len(LOOKS) and process.foretold is None:
                process.looks += 1
                self._undecided[ref] = process
                heapq.heappush(self._looks, (now + LOOKS[process.looks], ref))
            else:
                outcomes[ref] = self._settle(process, process.foretold or ("unknown" if seen is False else None))
        if outcomes:
            self._writer.write(Decided(outcomes))

    def ended(self, process: Process) -> list[spool.Record]:
        """What is to be written of the end of a process; nothing, if it had not executed anything."""
        now = time.time_ns() // 1000
        records: list[spool.Record] = []
        if process.ref:
            # It came and went between two looks, as most do.
            self._undecided.pop(process.ref, None)
            ref, error = process.ref, process.foretold
            if error is None:
                process.executed = True
            process.ref = 0
            records.append(Decided({ref: error}))
        if process.executed:
            process.executed = False
            status = how_it_ended(process)
            name = signal_name(status) if status is not None else None
            event = events.ProcessExited(
                container_id=self._container_id,
                channel=process.channel,
                pid=process.number,
                status=None if status is None or name is not None else status >> 8 & 0xFF,
                signal=name,
                duration=max(0, now - process.began) / 1e6,
            )
            records.append(spool.fact(event, now))
        self._processes.forget(process)
        return records

    def _seen(self, process: Process) -> bool | None:
        """Whether the process has executed something since it asked; None: that cannot be seen any more."""
        if process.image:
            image = kernel.image(process.pid)
            return None if not image else image != process.image
        now = kernel.stat(process.pid)
        return None if now is None or now.zombie else now.executed

    def _decide_now(self, process: Process) -> Decided:
        """It asks again: so what it asked for before has happened, or not."""
        self._undecided.pop(process.ref, None)
        ref = process.ref
        match self._seen(process):
            case True:
                self._executed(process)
                return Decided({ref: None})
            case False:
                return Decided({ref: self._settle(process, process.foretold or "unknown")})
            case _:
                return Decided({ref: self._settle(process, process.foretold)})

    def _executed(self, process: Process) -> None:
        process.ref, process.executed = 0, True
        self.on_executed(process.pid)

    def _settle(self, process: Process, error: str | None) -> str | None:
        process.ref = 0
        if error is None:
            process.executed = True
        return error
