import errno
import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.config.keeping import RecordingConfig
from hermes.errors import RecordingError, RecordingLimitError
from hermes.recording import asciicast, lossless, recorder
from hermes.recording.lossless import Decoder, Ending, Frame, Kind
from hermes.recording.recorder import Quota, SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo

SESSION = SessionInfo("5e5510", "root", "192.0.2.7", 4711, authenticated=True)


def started(root: Path, **more: object) -> SessionRecorder:
    one = SessionRecorder(RecordingConfig(output_dir=root), SESSION, **more)  # type: ignore[arg-type]
    one.start()
    return one


def frames(one: SessionRecorder) -> tuple[list[Frame], Decoder]:
    decoder = Decoder()
    return decoder.feed(one.path.with_suffix(".rec").read_bytes()), decoder


def stream(one: SessionRecorder, kind: Kind) -> bytes:
    return b"".join(frame.data for frame in frames(one)[0] if frame.kind is kind)


def cast(one: SessionRecorder) -> list[asciicast.Event]:
    header, *lines = one.path.read_bytes().splitlines(keepends=True)
    assert asciicast.decode_header(header) is not None
    for line in lines:
        json.loads(line)
    return list(asciicast.decode_events(lines))


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_000

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder, "time", clock)
    return clock


LIMIT = 10_000


@contextmanager
def files_limited(size: int = LIMIT) -> Iterator[None]:
    """Files of this process cannot grow past `size` bytes (Python ignores SIGXFSZ: a write then fails with EFBIG).

    Only around what is to fail: pytest's own output may go to a longer file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_everything_is_there_when_the_method_returns(tmp_path: Path) -> None:
    one = started(tmp_path, pty_request=PTYRequest("xterm", 120, 40), channel=3)
    one.output(b"login: \xc3")
    assert stream(one, Kind.STDOUT) == b"login: \xc3"
    assert [event.text for event in cast(one)] == ["login: "]
    one.output(b"\xa9")
    one.input(b"\x00\xff")
    assert [(event.code, event.text) for event in cast(one)] == [("o", "login: "), ("o", "é"), ("i", "\0\ufffd")]
    assert stream(one, Kind.STDIN) == b"\x00\xff"
    assert (one.bytes_out, one.bytes_in) == (9, 2)
    one.close()


def test_a_whole_channel(tmp_path: Path) -> None:
    one = started(tmp_path, kind="exec", command=b"cat \xff")
    one.input(b"in")
    one.input_eof()
    one.input_eof()
    one.output(b"out\n")
    one.output(b"err\n", stderr=True)
    one.output(b"")
    one.marker("signal TERM")
    one.close(exit_signal="TERM")
    got, decoder = frames(one)
    assert [(frame.kind, frame.data) for frame in got[:-1]] == [
        (Kind.STDIN, b"in"),
        (Kind.STDIN_EOF, b""),
        (Kind.STDOUT, b"out\n"),
        (Kind.STDERR, b"err\n"),
        (Kind.MARKER, b"signal TERM"),
    ]
    assert got[-1].kind is Kind.END
    assert lossless.decode_end(got[-1].data) == lossless.End(signal="TERM")
    assert decoder.ending is Ending.COMPLETE
    assert decoder.facts is not None
    assert decoder.facts.command == b"cat \xff"
    assert [(event.code, event.text) for event in cast(one)] == [
        ("i", "in"),
        ("m", "stdin closed"),
        ("o", "out\n"),
        ("o", "err\n"),
        ("m", "signal TERM"),
        ("m", "killed by TERM"),
    ]


@given(st.lists(st.tuples(st.sampled_from([Kind.STDIN, Kind.STDOUT, Kind.STDERR]), st.binary(max_size=40))))
def test_any_bytes_in_any_pieces_come_back(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[Kind, bytes]]) -> None:
    one = started(tmp_path_factory.mktemp("recordings"))
    for kind, data in pieces:
        if kind is Kind.STDIN:
            one.input(data)
        else:
            one.output(data, stderr=kind is Kind.STDERR)
    one.close(exit_status=0)
    for kind in (Kind.STDIN, Kind.STDOUT, Kind.STDERR):
        assert stream(one, kind) == b"".join(data for what, data in pieces if what is kind)
    text = "".join(event.text for event in cast(one) if event.code == "i")
    assert text == stream(one, Kind.STDIN).decode(errors="replace")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 7))
def test_utf8_output_is_the_same_text_in_the_asciicast(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    one = started(tmp_path_factory.mktemp("recordings"))
    data = text.encode()
    for at in range(0, len(data), size):
        one.output(data[at : at + size])
        one.output(b"\xe2", stderr=True)
    one.close()
    assert "".join(event.text for event in cast(one) if event.code == "o").replace("\ufffd", "") == text.replace("\ufffd", "")


def test_large_pieces_are_split(tmp_path: Path) -> None:
    one = started(tmp_path)
    data = bytes(range(256)) * 1024 + b"tail"
    one.output(data)
    assert stream(one, Kind.STDOUT) == data
    got, _ = frames(one)
    assert len({frame.time for frame in got}) == 1
    assert one.bytes_out == len(data)
    one.close()


def test_layout_and_modes(tmp_path: Path, clock: Clock) -> None:
    root = tmp_path / "not" / "there"
    one = started(root, channel=12)
    assert one.relative_path == "2023-11-14/5e5510/12.cast"
    assert one.path == root / one.relative_path
    for directory in (root, root / "2023-11-14", one.path.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in (one.path, one.path.with_suffix(".rec")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    one.close()


def test_the_argument_serves_when_the_setting_is_empty(tmp_path: Path) -> None:
    one = SessionRecorder(RecordingConfig(), SESSION, output_dir=tmp_path)
    one.start()
    one.close()
    assert one.path.is_relative_to(tmp_path)
    with pytest.raises(RecordingError, match="output_dir"):
        SessionRecorder(RecordingConfig(), SESSION)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "a\n", "é", "x" * 129])
def test_a_session_id_cannot_lead_elsewhere(tmp_path: Path, bad: str) -> None:
    with pytest.raises(RecordingError, match="not a session id"):
        SessionRecorder(RecordingConfig(output_dir=tmp_path), SessionInfo(bad, "root", "192.0.2.7", 1))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = started(tmp_path)
    first.output(b"evidence")
    before = fds()
    with pytest.raises(RecordingError, match="File exists"):
        started(tmp_path)
    assert fds() == before
    assert stream(first, Kind.STDOUT) == b"evidence"
    first.close()


def test_a_start_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path), SESSION)
    one.path.parent.mkdir(parents=True)
    one.path.touch()
    before = fds()
    with pytest.raises(RecordingError, match="File exists"):
        one.start()
    assert fds() == before
    assert [path.name for path in one.path.parent.iterdir()] == ["0.cast"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path / "recordings"), SESSION)
    one.path.parent.parent.mkdir(parents=True)
    one.path.parent.symlink_to(elsewhere)
    with pytest.raises(RecordingError):
        one.start()
    assert list(elsewhere.iterdir()) == []


def test_hostile_facts_are_kept_within_bounds(tmp_path: Path) -> None:
    info = SessionInfo("s", "\udcff\x1b]0;" + "u" * 300_000, "192.0.2.7", 1)
    one = SessionRecorder(
        RecordingConfig(output_dir=tmp_path), info, pty_request=PTYRequest("t" * 300_000, 2**32 - 1, 0), command=b"\xff" * 300_000
    )
    one.start()
    one.close()
    _, decoder = frames(one)
    assert decoder.facts is not None
    assert len(decoder.facts.username) < 2000
    assert decoder.facts.width == 2**32 - 1
    assert one.path.stat().st_size < asciicast.MAX_LINE
    cast(one)


def test_resizes_are_bounded_and_the_last_one_counts(tmp_path: Path, clock: Clock) -> None:
    one = started(tmp_path)
    for n in range(100_000):
        clock.now += 10_000  # 100 000 in a second
        one.resize(80 + n % 50, 24, n)
    clock.now += 5
    one.output(b"$ ")
    one.close()
    got, _ = frames(one)
    sizes = [frame for frame in got if frame.kind is Kind.RESIZE]
    assert 2 <= len(sizes) <= recorder.RESIZES_PER_SECOND + 1
    assert lossless.decode_size(sizes[-1].data) == (80 + 99_999 % 50, 24, 99_999, 0)
    assert sizes[-1].time == 1_000_000_000
    assert [frame.kind for frame in got[-2:]] == [Kind.STDOUT, Kind.END]
    assert [event.code for event in cast(one)][-3:] == ["r", "o", "m"]


def test_a_lone_resize_is_written_at_once_and_the_same_one_never(tmp_path: Path, clock: Clock) -> None:
    one = started(tmp_path, pty_request=PTYRequest("xterm", 80, 24))
    one.resize(80, 24)
    one.resize(100, 30)
    assert [event.text for event in cast(one)] == ["100x30"]
    clock.now += 1
    one.resize(90, 30)
    one.resize(100, 30)
    one.input(b"x")
    assert [event.text for event in cast(one)] == ["100x30", "x"]
    one.close()


def test_a_held_resize_is_written_at_close(tmp_path: Path, clock: Clock) -> None:
    one = started(tmp_path)
    one.resize(100, 30)
    one.resize(101, 31)
    one.close()
    assert [event.text for event in cast(one)] == ["100x30", "101x31", "closed"]


def test_markers_are_bounded(tmp_path: Path) -> None:
    one = started(tmp_path)
    for _ in range(recorder.MAX_MARKERS + 7):
        one.marker("\udc80" + "x" * 10_000)
    one.close(exit_status=1)
    labels = [event.text for event in cast(one)]
    assert len(labels) == recorder.MAX_MARKERS + 2
    assert len(labels[0]) < 2 * recorder.MAX_LABEL
    assert labels[-2:] == ["7 more markers not recorded", "exit 1"]


def test_a_cut_off_character_is_shown_at_close(tmp_path: Path) -> None:
    one = started(tmp_path)
    one.output(b"\xe2\x82")
    one.input(b"\xc3")
    one.close()
    assert [(event.code, event.text) for event in cast(one)] == [("o", "\ufffd"), ("i", "\ufffd"), ("m", "closed")]


def test_a_full_disk_fails_the_recorder_for_good(tmp_path: Path) -> None:
    before = fds()
    one = started(tmp_path)
    one.output(b"delivered")
    with files_limited(), pytest.raises(RecordingError, match=rf"{one.relative_path}: {os.strerror(errno.EFBIG)}"):
        one.output(b"x" * LIMIT)
    assert fds() == before
    calls: list[Callable[[], None]] = [
        lambda: one.output(b"y"),
        lambda: one.input(b"y"),
        one.input_eof,
        lambda: one.resize(1, 1),
        lambda: one.marker("m"),
    ]
    for call in calls:
        with pytest.raises(RecordingError, match="an earlier write failed"):
            call()
    one.close(exit_status=0)
    got, decoder = frames(one)
    assert got == [Frame(got[0].time, Kind.STDOUT, b"delivered")]
    assert decoder.ending is Ending.TORN
    assert [event.text for event in cast_events_of_torn(one)] == ["delivered"]


def cast_events_of_torn(one: SessionRecorder) -> list[asciicast.Event]:
    return list(asciicast.decode_events(one.path.read_bytes().splitlines(keepends=True)[1:]))


def test_a_full_disk_in_the_asciicast_alone_fails_too(tmp_path: Path) -> None:
    one = started(tmp_path)
    with files_limited(), pytest.raises(RecordingError):
        one.output(b"\0" * (LIMIT // 4))
    got, decoder = frames(one)
    assert (len(got), decoder.ending) == (1, Ending.OPEN)
    assert cast_events_of_torn(one) == []


def test_a_last_write_that_fails_is_told_and_the_files_are_closed(tmp_path: Path) -> None:
    before = fds()
    one = started(tmp_path)
    one.output(b"delivered")
    with files_limited(one.path.stat().st_size), pytest.raises(RecordingError):
        one.close(exit_status=0)
    one.close(exit_status=0)
    assert fds() == before
    assert stream(one, Kind.STDOUT) == b"delivered"


def test_a_start_without_room_leaves_no_descriptor(tmp_path: Path) -> None:
    before = fds()
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError):
        started(tmp_path / "file")
    assert fds() == before


def test_device_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path), SESSION)
    before = fds()
    real = os.open

    def to_dev_full(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if str(path).endswith(".cast"):
            os.close(fd)
            return real("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
        return fd

    monkeypatch.setattr("hermes.recording.recorder.os.open", to_dev_full)
    with pytest.raises(RecordingError, match=os.strerror(errno.ENOSPC)):
        one.start()
    monkeypatch.undo()
    assert fds() == before
    assert list(one.path.parent.iterdir()) == [], "a full disk is not filled with empty files"


def test_order_of_calls(tmp_path: Path) -> None:
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path), SESSION)
    with pytest.raises(RecordingError, match="not started"):
        one.output(b"x")
    one.start()
    with pytest.raises(RecordingError, match="started twice"):
        one.start()
    one.close()
    one.close()
    with pytest.raises(RecordingError, match="closed"):
        one.output(b"x")
    never = SessionRecorder(RecordingConfig(output_dir=tmp_path), SESSION, channel=1)
    never.close()
    with pytest.raises(RecordingError):
        never.start()


def sizes(one: SessionRecorder) -> int:
    return sum(path.stat().st_size for path in one.path.parent.iterdir())


@pytest.mark.parametrize("piece", [b"x" * 1000, "é€".encode() * 333 + b"\xc3", b"\0" * 30_000, b"y" * 200_000])
def test_at_the_limit_nothing_of_a_piece_is_written_and_the_end_still_is(tmp_path: Path, piece: bytes) -> None:
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path, max_channel_bytes=256 * 1024), SESSION)
    one.start()
    delivered = b""
    with pytest.raises(RecordingLimitError) as caught:
        while True:
            one.output(piece)
            delivered += piece
    assert (caught.value.limit, caught.value.value) == ("recording.max_channel_bytes", 256 * 1024)
    assert sizes(one) <= 256 * 1024
    calls: list[Callable[[], None]] = [
        lambda: one.output(b"y"),
        lambda: one.input(b"y"),
        lambda: one.resize(1, 1),
        lambda: one.marker("m"),
    ]
    for call in calls:
        with pytest.raises(RecordingLimitError):
            call()
    one.close(exit_status=3)
    assert sizes(one) <= 256 * 1024 + 4096
    got, decoder = frames(one)
    assert decoder.ending is Ending.COMPLETE
    recorded = stream(one, Kind.STDOUT)
    assert recorded.startswith(delivered)
    assert (delivered + piece).startswith(recorded)
    assert [frame.data for frame in got[-2:]] == [
        b"recorded up to recording.max_channel_bytes", lossless.encode_end(3, None),
    ]  # fmt: skip
    assert "".join(event.text for event in cast(one) if event.code == "o") == recorded.decode(errors="replace")
    assert cast(one)[-1].text == "exit 3"


def test_the_channels_of_a_session_share_its_limit(tmp_path: Path) -> None:
    config = RecordingConfig(output_dir=tmp_path)
    quota = Quota("recording.max_session_bytes", 64 * 1024)
    one, two = (SessionRecorder(config, SESSION, channel=number, session_quota=quota) for number in (1, 2))
    one.start()
    two.start()
    one.output(b"x" * 30_000)
    with pytest.raises(RecordingLimitError, match=r"recording\.max_session_bytes of 65536 bytes reached"):
        two.output(b"x" * 30_000)
    two.close()
    assert stream(two, Kind.STDOUT) == b""
    one.output(b"still room for a little")
    three = SessionRecorder(config, SESSION, channel=3, command=b"x" * 10_000, session_quota=quota)
    with pytest.raises(RecordingLimitError):
        three.start()
    assert not three.path.exists()
    one.close()
    assert frames(one)[1].ending is frames(two)[1].ending is Ending.COMPLETE


def test_a_clock_that_is_set_moves_nothing_in_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = started(tmp_path)
    for nanoseconds in (10**18, 0, 2**61):
        monkeypatch.setattr("hermes.recording.recorder.time.time_ns", lambda now=nanoseconds: now)
        one.output(b"x")
    one.close()
    times = [frame.time for frame in frames(one)[0]]
    assert times == sorted(times)
    assert times[-1] < 600 * 10**9
    assert [event.time for event in cast(one)] == sorted(event.time for event in cast(one))
    again = started(tmp_path, channel=9)
    again.close()
    assert frames(again)[1].ending is Ending.COMPLETE


def test_without_memory_it_fails_like_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> bytes:
        raise MemoryError

    one = started(tmp_path)
    one.output(b"delivered")
    monkeypatch.setattr(lossless, "encode", no_memory)
    with pytest.raises(RecordingError, match="Cannot allocate memory"):
        one.output(b"x")
    with pytest.raises(RecordingError, match="an earlier write failed"):
        one.output(b"y")
    monkeypatch.undo()
    assert stream(one, Kind.STDOUT) == b"delivered"
