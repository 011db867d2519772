"""One order for events and bytes."""

import base64
import tracemalloc
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hermes.evidence import timeline
from hermes.evidence.timeline import Channel, Event, Item, fields, merge
from hermes.recording import lossless
from hermes.recording.lossless import Frame, Kind

MS = 1000
T = 1_700_000_000_000_000


def event(at: int, name: str, number: int = 1, **body: Any) -> Event:
    return Event(T + at * MS, T + at * MS, number, name, {"event": name, **body})


def frames(*parts: tuple[int, Kind, bytes]) -> list[Frame]:
    return [Frame(at * MS * 1000, kind, data) for at, kind, data in parts]


def channel(*parts: tuple[int, Kind, bytes], number: int = 1, start: int = 0) -> Channel:
    return Channel(number, T + start * MS, lambda: frames(*parts))


def told(items: Iterator[Item]) -> list[tuple[int, str, bytes | str | None]]:
    return [((one.time - T) // MS, one.kind, one.event or one.data) for one in items]


IN, OUT, ERR = Kind.STDIN, Kind.STDOUT, Kind.STDERR


def test_keystrokes_and_their_echo_are_a_line_each_and_the_output_after_is_another() -> None:
    typed = channel(
        (1, OUT, b"$ "), (10, IN, b"l"), (11, OUT, b"l"), (50, IN, b"s"), (51, OUT, b"s"),
        (90, IN, b"\r"), (91, OUT, b"\r\n"), (95, OUT, b"a b\r\n$ "),
    )  # fmt: skip
    line = event(90, "channel.input", channel=1, line="ls")
    items = list(merge([line], [typed]))
    assert told(iter(items)) == [
        (1, "output", b"$ "), (10, "input", b"ls\r"), (11, "output", b"ls"), (90, "line", "channel.input"),
        (91, "output", b"\r\na b\r\n$ "),
    ]  # fmt: skip
    assert [one.command for one in items] == [None, None, None, None, "ls"]
    assert (items[1].until, items[1].pieces) == (T + 90 * MS, 3)


def test_what_was_recorded_stands_before_what_was_stated_of_it_in_the_same_moment() -> None:
    assert told(merge([event(5, "channel.input", channel=1, line="x")], [channel((5, IN, b"x\n"))])) == [
        (5, "input", b"x\n"), (5, "line", "channel.input"),
    ]  # fmt: skip


def test_an_event_of_a_channel_parts_its_output_but_not_that_of_others() -> None:
    one = channel((1, OUT, b"a"), (3, OUT, b"b"))
    two = channel((1, OUT, b"c"), (3, OUT, b"d"), number=2)
    assert told(merge([event(2, "process.started", pid=7, parent=0, channel=1)], [one, two])) == [
        (1, "output", b"a"), (1, "output", b"cd"), (2, "process", "process.started"), (3, "output", b"b"),
    ]  # fmt: skip


def test_a_pause_ends_a_burst() -> None:
    assert told(merge([], [channel((0, OUT, b"1%"), (900, OUT, b"2%"), (2000, OUT, b"3%"), (2001, ERR, b"!"))])) == [
        (0, "output", b"1%2%"), (2000, "output", b"3%"), (2001, "output", b"!"),
    ]  # fmt: skip


def test_channels_begin_when_they_began() -> None:
    opened = []

    def reading(number: int, *parts: tuple[int, Kind, bytes]) -> Channel:
        def read() -> Iterator[Frame]:
            opened.append(number)
            yield from frames(*parts)

        return Channel(number, T + number * MS, read)

    items = merge([], [reading(5000, (0, OUT, b"late")), reading(0, (0, OUT, b"early"), (9000, OUT, b"last"))], bursts=False)
    assert next(items).data == b"early"
    assert opened == [0], "what began later is not open yet"
    assert [one.data for one in items] == [b"late", b"last"]


def test_marks_of_the_recording_are_told() -> None:
    it = channel(
        (1, Kind.RESIZE, lossless.encode_size(80, 24, 1, 2)), (2, Kind.MARKER, b"signal INT"), (3, Kind.STDIN_EOF, b""),
        (4, Kind.END, lossless.encode_end(3, None)),
    )  # fmt: skip
    assert [one.body for one in merge([], [it])] == [
        {"mark": "resize", "width": 80, "height": 24, "pixel_width": 1, "pixel_height": 2},
        {"mark": "marker", "label": "signal INT"},
        {"mark": "stdin_eof"},
        {"mark": "end", "status": 3, "signal": None},
    ]


PIECES = st.lists(
    st.tuples(st.integers(0, 3000), st.sampled_from([IN, OUT, ERR]), st.binary(min_size=1, max_size=9)), max_size=60
)
EVENTS = st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([None, 1, 2])), max_size=20)


@given(PIECES, PIECES, EVENTS)
def test_no_byte_and_no_event_is_lost_doubled_or_out_of_order(one: Any, two: Any, events: Any) -> None:
    one, two = sorted(one, key=lambda part: part[0]), sorted(two, key=lambda part: part[0])
    stated = [
        event(at, "limit.reached", number, channel=of) for number, (at, of) in enumerate(sorted(events, key=lambda it: it[0]))
    ]
    for bursts in (True, False):
        items = list(merge(stated, [channel(*one), channel(*two, number=2)], bursts=bursts))
        assert [it.time for it in items] == sorted(it.time for it in items)
        assert [it.id for it in items if it.id is not None] == [it.id for it in stated]
        for number, parts in ((1, one), (2, two)):
            for kind in (IN, OUT, ERR):
                whole = b"".join(it.data for it in items if it.channel == number and it.stream == kind.name.lower())
                assert whole == b"".join(data for _, what, data in parts if what is kind)
        assert sum(it.pieces for it in items) == len(one) + len(two)


def test_a_burst_without_an_end_does_not_hold_up_or_fill_memory() -> None:
    def endless() -> Iterator[Frame]:
        for number in range(30_000):
            yield Frame(number * 1000, IN, b"x" * 100)

    many = (event(number // 1000, "limit.reached", number, channel=2) for number in range(30_000))
    tracemalloc.start()
    count = sum(1 for _ in merge(many, [Channel(1, T, endless)]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 30_000
    assert peak < 10 * 2**20


def test_plain_data_has_every_byte_and_says_where_a_time_is_another() -> None:
    tried = Event(T + 9 * MS, T - 7, 4, "network.attempted", {"event": "network.attempted", "pid": 3})
    (text, binary, other) = merge([tried], [channel((1, OUT, "é\x1b".encode()), (2, ERR, b"\xff\0"))])
    assert fields(text)["text"] == "é\x1b"
    assert "base64" not in fields(text)
    assert base64.b64decode(fields(binary)["base64"]) == b"\xff\0"
    assert fields(binary)["stream"] == "stderr"
    assert fields(other) == {
        "time": "2023-11-14T22:13:20.009000Z", "kind": "network", "id": 4, "event": "network.attempted", "depth": 0,
        "stated": "2023-11-14T22:13:19.999993Z", "data": {"pid": 3},
    }  # fmt: skip


def test_kinds_are_the_nouns_of_events() -> None:
    assert [timeline.kind_of(it) for it in ("process.started", "channel.input", "odd")] == ["process", "line", "odd"]
