"""A session on one timeline: its events and every byte of its channels, in one order on one clock, each with what caused it.

Pure: sources in, items out, one at a time. What is held in memory does not grow with the session: the frames being read of the
channels open at a moment, and bursts that are still being put together (`HELD`, `HELD_BYTES`).
"""

import base64
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from hermes.evidence.causes import Cause, Causes
from hermes.recording import lossless
from hermes.recording.lossless import Frame, Kind
from hermes.store.lines import ascii_json

BYTES = ("input", "output")
"""Kinds of items that are bytes of a channel."""
IN_THE_BOX = ("process", "network", "file", "artifact")
"""Kinds of items that have a place in the tree of processes."""
PAUSE = 1_000_000
"""Microseconds of silence that end a burst."""
BURST_BYTES = 64 * 1024
"""Bytes of one burst, about; a line that is longer is several."""
HELD = 1000
"""Items held back at most, while a burst before them goes on."""
HELD_BYTES = 1024 * 1024

_STREAMS = {Kind.STDIN: "input", Kind.STDOUT: "output", Kind.STDERR: "output"}


class Item(msgspec.Struct, kw_only=True):
    """One thing that happened. An event has `id`, `event` and `body`; bytes have `stream`, `data` and `until`."""

    time: int
    """µs since the epoch, by the session's clock; of a burst, its first byte's."""
    kind: str
    """`input` or `output`; `line` (a line as entered); `recording` (its marks); or the noun of the event, such as `process`."""
    channel: int | None = None
    command: str | None = None
    """The command that caused it: the channel's own or, in a shell, the line entered last before (or its process's)."""
    depth: int = 0
    """How deep in the tree of processes."""
    id: int | None = None
    event: str | None = None
    body: dict[str, Any] = {}
    """The event's fields, or what a mark of the recording says."""
    stated: int | None = None
    """The time that stands in the journal, where that is another."""
    until: int | None = None
    """The time of a burst's last byte."""
    stream: str | None = None
    """`stdin`, `stdout` or `stderr`."""
    data: bytes = b""
    pieces: int = 0
    """Frames of the recording that the burst is of."""


class Event(NamedTuple):
    """An event, as a source has it: `time` by the session's clock, `stated` as in the journal."""

    time: int
    stated: int
    id: int
    event: str
    body: dict[str, Any]


class Channel(NamedTuple):
    """A channel's recording, as a source: `start` in µs by the session's clock, and a way to its frames."""

    channel: int
    start: int
    frames: Callable[[], Iterable[Frame]]


def kind_of(event: str) -> str:
    """Return the kind of items that an event becomes."""
    return "line" if event == "channel.input" else event.partition(".")[0]


def merge(events: Iterable[Event], channels: Sequence[Channel], *, bursts: bool = True) -> Iterator[Item]:
    """Yield everything in the order of time. `events` come in that order, the frames of a channel in theirs.

    `bursts`: keystrokes up to the end of a line or a pause are one item, and so is output up to the next keystroke, pause or
    event of its channel. Without, each piece of a stream is an item, as it was recorded.
    """
    items = _with_causes(events, channels)
    return _Bursts(items) if bursts else items


def moment(micros: int) -> str:
    """Return a time as ISO 8601 in UTC, with six digits."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def fields(item: Item) -> dict[str, Any]:
    """Return the item as plain data for JSON, without what it has not. Bytes are `text` where they are UTF-8, else `base64`."""
    found: dict[str, Any] = {"time": moment(item.time), "kind": item.kind}
    for name in ("channel", "command", "id", "event", "stream"):
        if (value := getattr(item, name)) is not None:
            found[name] = value
    if item.stated is not None:
        found["stated"] = moment(item.stated)
    if item.kind in IN_THE_BOX:
        found["depth"] = item.depth
    if item.stream is not None:
        found |= {"until": moment(item.until or item.time), "pieces": item.pieces, "size": len(item.data)}
        try:
            found["text"] = item.data.decode()
        except UnicodeDecodeError:
            found["base64"] = base64.b64encode(item.data).decode()
    elif item.body:
        found["data"] = {name: value for name, value in item.body.items() if name != "event"}
    return found


def json_line(item: Item) -> bytes:
    """Return the item as a line of JSON, in printable ASCII."""
    return ascii_json(msgspec.json.encode(fields(item))) + b"\n"


# ---- one order


def _with_causes(events: Iterable[Event], channels: Sequence[Channel]) -> Iterator[Item]:
    causes = Causes()
    for time, channel, what in _ordered(events, channels):
        if isinstance(what, Event):
            cause = causes.of_event(what.event, what.body)
            yield Item(
                time=time, kind=kind_of(what.event), channel=cause.channel, command=cause.command, depth=cause.depth,
                id=what.id, event=what.event, body=what.body, stated=None if what.stated == time else what.stated,
            )  # fmt: skip
        else:
            yield _of_frame(time, what, causes.of_channel(channel))


def _ordered(events: Iterable[Event], channels: Sequence[Channel]) -> Iterator[tuple[int, int, Event | Frame]]:
    """Yield time, channel and what it is. A recording is opened when its time has come, and closed at its end."""
    waiting = deque(sorted(channels, key=lambda one: (one.start, one.channel)))
    # What was recorded comes before what was stated of it in the same microsecond.
    heap: list[tuple[int, int, int, Event | Frame, Iterator[Any]]] = []

    def push(rank: int, channel: int, source: Iterator[Any], start: int) -> None:
        for what in source:
            time = what.time if isinstance(what, Event) else start + what.time // 1000
            heapq.heappush(heap, (time, rank, channel, what, source))
            return

    starts = {one.channel: one.start for one in channels}
    push(len(channels), 0, iter(events), 0)
    ranks = {one.channel: rank for rank, one in enumerate(waiting)}
    while heap or waiting:
        while waiting and (not heap or waiting[0].start <= heap[0][0]):
            one = waiting.popleft()
            push(ranks[one.channel], one.channel, iter(one.frames()), one.start)
        if not heap:
            continue
        time, rank, channel, what, source = heapq.heappop(heap)
        yield time, channel, what
        push(rank, channel, source, starts.get(channel, 0))


def _of_frame(time: int, frame: Frame, cause: Cause) -> Item:
    if frame.kind in _STREAMS:
        return Item(
            time=time, kind=_STREAMS[frame.kind], channel=cause.channel, command=cause.command, until=time,
            stream=frame.kind.name.lower(), data=frame.data, pieces=1,
        )  # fmt: skip
    body: dict[str, Any] = {"mark": frame.kind.name.lower()}
    if frame.kind is Kind.RESIZE:
        body |= zip(("width", "height", "pixel_width", "pixel_height"), lossless.decode_size(frame.data), strict=True)
    elif frame.kind is Kind.MARKER:
        body["label"] = frame.data.decode(errors="replace")
    elif frame.kind is Kind.END:
        body |= msgspec.to_builtins(lossless.decode_end(frame.data))
    return Item(time=time, kind="recording", channel=cause.channel, command=cause.command, body=body)


# ---- bursts


class _Burst:
    """Bytes that are put together; closed, nothing more comes to it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.parts = [item.data]
        self.size = len(item.data)
        self.open = True

    def add(self, item: Item) -> None:
        self.parts.append(item.data)
        self.size += len(item.data)
        self.item.until = item.time
        self.item.pieces += 1

    def whole(self) -> Item:
        self.item.data = b"".join(self.parts)
        self.parts = []
        return self.item


class _Bursts(Iterator[Item]):
    """Put bytes together; an item comes when everything before it is closed."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._held: deque[_Burst | Item] = deque()
        self._bytes = 0
        self._open: dict[tuple[int | None, str], _Burst] = {}
        """By channel and stream; few, for a pause closes them."""
        self._over = False

    def __next__(self) -> Item:
        while not self._ready():
            try:
                item = next(self._items)
            except StopIteration:
                self._over = True
                continue
            self._take(item)
        if not self._held:
            raise StopIteration
        first = self._held.popleft()
        if isinstance(first, Item):
            return first
        self._close(first)
        self._bytes -= first.size
        return first.whole()

    def _ready(self) -> bool:
        if self._over:
            return True
        if not self._held:
            return False
        first = self._held[0]
        return isinstance(first, Item) or not first.open or len(self._held) > HELD or self._bytes > HELD_BYTES

    def _take(self, item: Item) -> None:
        for burst in list(self._open.values()):
            if item.time - (burst.item.until or 0) > PAUSE:
                self._close(burst)
        if item.stream is None:
            self._end(item.channel, "stdout", "stderr")
            self._held.append(item)
            return
        key = (item.channel, item.stream)
        self._bytes += len(item.data)
        if key in self._open:
            burst = self._open[key]
            burst.add(item)
        else:
            if item.stream == "stdin":  # what was shown before is not the echo of what is typed now
                self._end(item.channel, "stdout", "stderr")
            burst = self._open[key] = _Burst(item)
            self._held.append(burst)
        if item.stream == "stdin" and (b"\r" in item.data or b"\n" in item.data):
            self._end(item.channel, "stdin", "stdout", "stderr")
        elif burst.size >= BURST_BYTES:
            self._close(burst)

    def _end(self, channel: int | None, *streams: str) -> None:
        for stream in streams:
            if (channel, stream) in self._open:
                self._close(self._open[channel, stream])

    def _close(self, burst: _Burst) -> None:
        burst.open = False
        self._open.pop((burst.item.channel, burst.item.stream or ""), None)
