import os
from pathlib import Path

import pytest

from hermes.config.keeping import RecordingConfig
from hermes.recording.lossless import Ending, Kind
from hermes.recording.reader import RecordingUnavailable, channels, find_session
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import SessionInfo


def record(root: Path, session: str, channel: int = 0, output: bytes = b"out") -> SessionRecorder:
    recorder = SessionRecorder(RecordingConfig(output_dir=root), SessionInfo(session, "root", "192.0.2.7", 1), channel=channel)
    recorder.start()
    recorder.output(output)
    recorder.output(b"err", stderr=True)
    recorder.input(b"in")
    recorder.close(exit_status=0)
    return recorder


def test_a_session_is_found_by_its_id_or_the_beginning_of_it(tmp_path: Path) -> None:
    for name in ("abc1", "abc2", "abc", "b"):
        record(tmp_path, name)
    assert find_session(tmp_path, "abc1") == "abc1"
    assert find_session(tmp_path, "abc") == "abc"
    assert find_session(tmp_path, "b") == "b"
    with pytest.raises(RecordingUnavailable, match=r"3 recorded sessions begin with a: abc, abc1, abc2$"):
        find_session(tmp_path, "a")


@pytest.mark.parametrize("prefix", ["", "zz", ".", "..", "../", "2023-11-14/abc", "a\0", "\x1b[2J"])
def test_what_is_not_there_is_not_found(tmp_path: Path, prefix: str) -> None:
    record(tmp_path, "abc")
    with pytest.raises(RecordingUnavailable, match="no recorded session"):
        find_session(tmp_path, prefix)
    with pytest.raises(RecordingUnavailable, match="no recorded session"):
        find_session(tmp_path / "nowhere", "abc")
    assert channels(tmp_path, prefix) == []


def test_channels_come_in_the_order_they_began(tmp_path: Path) -> None:
    for number in (7, 3, 11):
        record(tmp_path, "s", number, b"channel %d" % number)
    found = channels(tmp_path, "s")
    assert [one.channel for one in found] == [7, 3, 11]
    assert [b"".join(one.raw(Kind.STDOUT)) for one in found] == [b"channel 7", b"channel 3", b"channel 11"]
    assert b"".join(found[0].raw(Kind.STDERR)) == b"err"
    assert b"".join(found[0].raw(Kind.STDIN)) == b"in"


def test_a_session_over_midnight_is_one_session(tmp_path: Path) -> None:
    first = record(tmp_path, "s", 0)
    (tmp_path / "1999-12-31").mkdir()
    first.path.parent.rename(tmp_path / "1999-12-31" / "s")
    record(tmp_path, "s", 1)
    assert [one.channel for one in channels(tmp_path, "s")] == [0, 1]


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    directory = record(tmp_path, "s").path.parent
    for name in ("notes.txt", "x.rec", "1.cast", "-1.rec"):
        (directory / name).touch()
    (tmp_path / "2023-01-01").touch()
    (tmp_path / "not-a-day" / "s").mkdir(parents=True)
    assert [one.channel for one in channels(tmp_path, "s")] == [0]


def test_planted_files_are_not_followed_and_do_not_hang(tmp_path: Path) -> None:
    directory = record(tmp_path, "s").path.parent
    secret = tmp_path / "secret"
    secret.write_bytes((directory / "0.rec").read_bytes())
    (directory / "1.rec").symlink_to(secret)
    os.mkfifo(directory / "2.rec")
    (directory / "3.rec").mkdir()
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    found = {one.channel: one for one in channels(tmp_path, "s")}
    assert [number for number, one in found.items() if one.facts is not None] == [0]
    for number in (1, 2, 3):
        with pytest.raises(RecordingUnavailable):
            list(found[number].play())
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_recording_that_still_grows_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    recorder = SessionRecorder(RecordingConfig(output_dir=tmp_path), SessionInfo("s", "root", "192.0.2.7", 1))
    recorder.start()
    recorder.output(b"$ ")
    (one,) = channels(tmp_path, "s")
    play = one.play()
    assert [frame.data for frame in play] == [b"$ "]
    assert play.ending is Ending.OPEN
    recorder.close()
    again = one.play()
    assert [frame.kind for frame in again] == [Kind.STDOUT, Kind.END]
    assert again.ending is Ending.COMPLETE


def test_torn_files_are_read_up_to_the_tear(tmp_path: Path) -> None:
    recorder = record(tmp_path, "s", output=b"x" * 1000)
    rec, cast = recorder.path.with_suffix(".rec"), recorder.path
    (one,) = channels(tmp_path, "s")
    os.truncate(rec, rec.stat().st_size - 1)
    os.truncate(cast, cast.stat().st_size - 1)
    play = one.play()
    assert [frame.kind for frame in play] == [Kind.STDOUT, Kind.STDERR, Kind.STDIN]
    assert play.ending is Ending.TORN
    assert [(event.code, event.text) for event in one.cast_events()] == [("o", "x" * 1000), ("o", "err"), ("i", "in")]
    os.truncate(rec, 5)
    (one,) = channels(tmp_path, "s")
    assert one.facts is None
    assert list(one.play()) == []


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RecordingUnavailable, match=f"{tmp_path}: Permission denied"):
        find_session(tmp_path, "s")
