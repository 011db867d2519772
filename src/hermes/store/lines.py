"""The journal's events as JSON lines, on standard output or in a file: an extra that may fail, wait or fall behind.

A thread of its own writes them after they are in the journal. Whatever it could not write, because the disk was full or
nobody read the pipe, it later takes from the journal itself: memory stays bounded and no line is left out.
"""

import json
import os
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from hermes.store import database

log = structlog.get_logger(__name__)

QUEUE_BYTES = 8 * 2**20
CATCH_UP_ROWS = 500
RETRY_SECONDS = (0.5, 30.0)


class Row(NamedTuple):
    """One event as the journal holds it; `time` in µs since the epoch, `body` the event as UTF-8 JSON."""

    id: int
    time: int
    sensor: str
    body: bytes


def ascii_json(text: bytes) -> bytes:
    """Return JSON as printable ASCII: a terminal cannot be moved by it, whatever bytes an attacker sent."""
    if not text.isascii():
        text = json.dumps(json.loads(text), separators=(",", ":")).encode()
    return text.replace(b"\x7f", rb"\u007f")


def line(row: Row) -> bytes:
    """Return one event as its line, newline included: `id`, `time` and `sensor` before the event's own fields."""
    seconds, micros = divmod(row.time, 1_000_000)
    sensor, body = row.sensor.encode(), ascii_json(row.body)
    return b'{"id":%d,"time":"%s.%06dZ","sensor":"%s",%s\n' % (row.id, _moment(seconds), micros, sensor, body[1:])


@lru_cache(maxsize=4)
def _moment(seconds: int) -> bytes:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def put_aside_name(target: Path, last: int) -> Path:
    """Return where lines up to the one with id `last` go when their file is full: names sort by age."""
    return target.with_name(f"{target.stem}-{last:015d}{target.suffix}")


def put_aside(target: Path) -> list[Path]:
    """Return the full files beside `target`, oldest first."""
    name = re.compile(re.escape(target.stem) + r"-[0-9]{15}" + re.escape(target.suffix))
    return sorted(each for each in target.parent.iterdir() if name.fullmatch(each.name))


class Lines:
    """Write rows as lines in the order of their ids, beginning with the row that `restart` names.

    `restart` and `offer` are called on one thread, the journal's. `offer` never blocks and never fails. A failing target is
    logged once, and once again when it is back.
    """

    def __init__(self, target: Path | Literal["stdout"], journal: Path, rotate: int = 0) -> None:
        """A file of `rotate` bytes or more is put aside, and another begun; 0: never."""
        self._target = target
        self._rotate = rotate
        self._journal = journal
        self._offered: deque[list[Row] | int] = deque()
        self._bytes_offered = 0
        self._bytes_taken = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hermes-lines", daemon=True)
        self._last = 0
        """Newest row there is to write."""
        self._next = 1
        """Row to be written next."""
        self._fd = -1
        self._chunk = b""
        self._done = 0
        """Bytes of `_chunk` that are written."""
        self._failing = False

    def start(self) -> None:
        """Begin to write what is offered."""
        self._thread.start()

    def offer(self, rows: list[Row]) -> None:
        """Take rows that are in the journal now, their ids ascending without a gap."""
        size = sum(len(row.body) for row in rows)
        if self._bytes_offered - self._bytes_taken + size <= QUEUE_BYTES:
            self._bytes_offered += size
            self._offered.append(rows)
        self._last = rows[-1].id
        self._wake.set()

    def restart(self, first: int) -> None:
        """Go on with the row `first`: another journal is in the place of the one written so far."""
        self._last = first - 1
        self._offered.append(first)

    def close(self, timeout: float) -> bool:
        """Write what is left and stop; return False if that took longer than `timeout` seconds and was given up."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._failing

    def _run(self) -> None:
        delay = RETRY_SECONDS[0]
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self._write_all()
            except (OSError, sqlite3.Error, MemoryError) as error:
                if not self._failing:
                    log.error("JSON lines cannot be written", target=str(self._target), reason=str(error))
                self._failing = True
                if self._closing.is_set():
                    break
                self._closing.wait(delay)
                delay = min(delay * 2, RETRY_SECONDS[1])
                self._wake.set()
                continue
            delay = RETRY_SECONDS[0]
            if self._failing:
                log.info("JSON lines are written again", target=str(self._target))
            self._failing = False
            if self._closing.is_set() and not self._offered:
                break
        if self._fd > 2:
            os.close(self._fd)

    def _write_all(self) -> None:
        self._put()
        for rows in self._rows():
            self._chunk, self._done = b"".join(map(line, rows)), 0
            self._next = rows[-1].id + 1
            self._put()

    def _rows(self) -> Iterator[list[Row]]:
        """Yield what is to be written: as it was offered, or from the journal where offers had to be dropped."""
        while self._offered:
            rows = self._offered.popleft()
            if isinstance(rows, int):
                self._next = rows
                continue
            self._bytes_taken += sum(len(row.body) for row in rows)
            if rows[0].id > self._next:
                yield from self._from_journal(self._next, rows[0].id - 1)
            yield rows
        if self._next <= self._last and not self._offered:
            yield from self._from_journal(self._next, self._last)

    def _from_journal(self, first: int, last: int) -> Iterator[list[Row]]:
        db = database.connect(self._journal, mode="ro", busy_timeout=1)
        try:
            while first <= last:
                found = db.execute(
                    "SELECT id, time, sensor, body FROM events WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                    (first, last, CATCH_UP_ROWS),
                ).fetchall()
                if not found:
                    break
                first = found[-1][0] + 1
                yield [Row(identity, moment, sensor, body.encode()) for identity, moment, sensor, body in found]
        finally:
            db.close()

    def _put(self) -> None:
        """Write what is left of the chunk; a line that was cut short is finished, or begun anew in a rotated file."""
        if self._done == len(self._chunk):
            return
        if self._reopen():
            self._done = self._chunk.rfind(b"\n", 0, self._done) + 1
        while self._done < len(self._chunk):
            self._done += os.write(self._fd, self._chunk[self._done : self._done + 65536])
        if self._rotate and isinstance(self._target, Path) and os.fstat(self._fd).st_size >= self._rotate:
            self._put_aside(self._target)

    def _put_aside(self, target: Path) -> None:
        """Give the file the name of its last line's id. Its successor is begun with the next line."""
        last = self._next - 1
        try:
            while (aside := put_aside_name(target, last)).exists():  # of a journal whose ids began anew
                last += 1
            target.rename(aside)
        except OSError as error:
            log.error("JSON lines grow without bound: their file cannot be renamed", target=str(target), reason=str(error))
            self._rotate = 0

    def _reopen(self) -> bool:
        """Open the target if it is not open, or not the same file any more; return True if it was opened."""
        if self._target == "stdout":
            self._fd, opened = 1, self._fd != 1
            return opened
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            try:
                there = self._target.stat()
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev):
                return False
            os.close(self._fd)
            self._fd = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._fd = os.open(self._target, flags, database.FILE_MODE)
        return True
