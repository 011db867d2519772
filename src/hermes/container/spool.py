"""What was seen in a box, on its way to the journal: a file that only grows, one record after the other.

A record is four bytes of length (little endian) and as many of msgpack. Whoever appends does it with one write(2), so a record is
there wholly or, where its writer was killed or the disk was full, cut short at the very end: what is cut short was never said.
The box's watcher writes what it sees, the broker to whom the box was given, and the end. Imported by the zygote: imports little.
"""

import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import TypeAlias, Union

import msgspec

from hermes import events

MAX_RECORD = 1 << 20
"""Bytes of one record, at most."""
CHUNK = 256 * 1024
"""Bytes read at once."""

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode


class Fact(msgspec.Struct, frozen=True, array_like=True, tag="fact"):
    """Something happened at `time` (µs since the epoch). `event` is an event of the catalogue, encoded; it lacks the session.

    With `ref` its outcome is not known yet: a later `Decided` names it, or the box ends before.
    """

    time: int
    event: msgspec.Raw
    ref: int = 0


class Decided(msgspec.Struct, frozen=True, array_like=True, tag="decided"):
    """What became of facts, by `ref`: the error, None if there was none."""

    outcomes: dict[int, str | None]


class Given(msgspec.Struct, frozen=True, array_like=True, tag="given"):
    """The box is that session's from here on; what was before was the box's own."""

    session_id: str


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Nothing follows: the box is gone, and whatever is known of it stands before."""


Record: TypeAlias = Fact | Decided | Given | End
_decode = msgspec.msgpack.Decoder(Record).decode


class SpoolDamagedError(Exception):
    """What is in the file cannot have been written by a watcher."""


@cache
def _event_decoder() -> msgspec.msgpack.Decoder[events.Event]:
    return msgspec.msgpack.Decoder(Union[tuple(events.ALL.values())])  # noqa: UP007 - of a number known only here


def event_of(fact: Fact) -> events.Event:
    """The event that a fact carries."""
    return _event_decoder().decode(fact.event)


def fact(event: events.Event, time: int, ref: int = 0) -> Fact:
    """The event as a fact."""
    return Fact(time, msgspec.Raw(_encode(event)), ref)


def framed(record: Record) -> bytes:
    """The record as it is written."""
    data = _encode(record)
    return _LENGTH.pack(len(data)) + data


def read(fd: int, position: int, size: int = CHUNK) -> Iterator[tuple[Record, int]]:
    """Yield the whole records from `position` on, of `size` bytes or a little more, and the position after each.

    Raises SpoolDamagedError, and OSError.
    """
    data = os.pread(fd, size, position)
    start = 0
    while len(data) - start >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data, start)
        if not 0 < length <= MAX_RECORD:
            raise SpoolDamagedError(f"a record of {length} bytes at {position + start}")
        end = start + _LENGTH.size + length
        if end > len(data):
            if start:
                return
            data = os.pread(fd, end, position)
            if len(data) < end:
                return
        try:
            record = _decode(memoryview(data)[start + _LENGTH.size : end])
        except msgspec.DecodeError as error:
            raise SpoolDamagedError(f"the record at {position + start}: {error}") from error
        yield record, position + end
        start = end
