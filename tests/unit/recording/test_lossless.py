import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hermes.recording import lossless
from hermes.recording.lossless import Decoder, Ending, Frame, Kind
from tests.unit.recording.test_asciicast import cut, facts

HEADER = lossless.encode_header(facts())
FRAMES = st.lists(
    st.tuples(st.integers(0, 2**40), st.sampled_from([k for k in Kind if k is not Kind.END]), st.binary(max_size=300))
)


def written(frames: list[tuple[int, Kind, bytes]]) -> tuple[bytes, list[Frame]]:
    """Return a file of `frames`, their times summed up, and what should be read from it."""
    expected, now = [], 0
    for gap, kind, data in frames:
        now += gap
        expected.append(Frame(now, kind, data))
    return HEADER + b"".join(lossless.encode(*frame) for frame in expected), expected


def read(data: bytes, places: list[int]) -> tuple[list[Frame], Decoder]:
    decoder = Decoder()
    return [frame for piece in cut(data, places) for frame in decoder.feed(piece)], decoder


@given(FRAMES, st.lists(st.integers(min_value=0)))
def test_frames_come_back_exactly_however_the_file_is_cut(frames: list[tuple[int, Kind, bytes]], places: list[int]) -> None:
    data, expected = written(frames)
    got, decoder = read(data, places)
    assert got == expected
    assert decoder.facts == facts()
    assert decoder.ending is Ending.OPEN


@given(FRAMES, st.integers(min_value=1))
def test_a_torn_file_yields_every_whole_frame(frames: list[tuple[int, Kind, bytes]], where: int) -> None:
    data, expected = written(frames)
    size = where % len(data)
    got, decoder = read(data[:size], [])
    ends = [len(HEADER)]
    for frame in expected:
        ends.append(ends[-1] + lossless.FRAME_HEADER + len(frame.data))
    whole = sum(end <= size for end in ends)
    assert got == expected[: max(whole - 1, 0)]
    assert decoder.ending is (Ending.OPEN if size in ends else Ending.TORN)


@given(FRAMES, st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_never_passes_for_evidence(frames: list[tuple[int, Kind, bytes]], where: int, bit: int) -> None:
    data, expected = written(frames)
    data += lossless.encode(2**60, Kind.END, lossless.encode_end(0, None))
    damaged = bytearray(data)
    damaged[where % len(data)] ^= 1 << bit
    got, decoder = read(bytes(damaged), [])
    assert got == expected[: len(got)]
    assert decoder.ending in (Ending.DAMAGED, Ending.TORN)


@given(st.binary(max_size=2000), st.lists(st.integers(min_value=0)))
@example(lossless.MAGIC, [3])
@example(HEADER + b"\xff" * 40, [])
def test_no_bytes_make_the_decoder_raise(data: bytes, places: list[int]) -> None:
    _, decoder = read(data, places)
    assert decoder.ending is not Ending.COMPLETE
    read(HEADER + data, places)


def test_nothing_is_read_after_the_end() -> None:
    data = HEADER + lossless.encode(5, Kind.END, lossless.encode_end(3, None)) + lossless.encode(6, Kind.STDOUT, b"forged")
    got, decoder = read(data, [])
    assert [frame.kind for frame in got] == [Kind.END]
    assert lossless.decode_end(got[0].data) == lossless.End(status=3)
    assert decoder.ending is Ending.COMPLETE
    assert decoder.feed(lossless.encode(7, Kind.STDOUT, b"more")) == []


@pytest.mark.parametrize(
    "frame",
    [
        lossless.encode(1, Kind.STDOUT, bytes(lossless.MAX_PAYLOAD + 1)),
        lossless.encode(1, 99, b"unknown kind"),  # type: ignore[arg-type]
        lossless.encode(0, Kind.STDOUT, b"before its predecessor"),
    ],
)
def test_what_no_recorder_writes_is_damage(frame: bytes) -> None:
    got, decoder = read(HEADER + lossless.encode(1, Kind.STDIN, b"x") + frame, [])
    assert got == [Frame(1, Kind.STDIN, b"x")]
    assert decoder.ending is Ending.DAMAGED


def test_another_version_is_refused() -> None:
    got, decoder = read(HEADER[:8] + b"\x02\x00" + HEADER[10:] + lossless.encode(1, Kind.STDIN, b"x"), [])
    assert (got, decoder.facts, decoder.ending) == ([], None, Ending.DAMAGED)


def test_sizes_and_ends_come_back_or_are_unknown() -> None:
    assert lossless.decode_size(lossless.encode_size(80, 24, 640, 480)) == (80, 24, 640, 480)
    assert lossless.decode_size(lossless.encode_size(-1, 2**40)) == (0, 2**32 - 1, 0, 0)
    assert lossless.decode_size(b"short") == (0, 0, 0, 0)
    assert lossless.decode_end(lossless.encode_end(None, "TERM")) == lossless.End(signal="TERM")
    assert lossless.decode_end(b"\xff{") == lossless.End()


def test_a_command_is_kept_byte_for_byte() -> None:
    decoder = Decoder()
    decoder.feed(lossless.encode_header(facts(command=bytes(range(256)))))
    assert decoder.facts is not None
    assert decoder.facts.command == bytes(range(256))
