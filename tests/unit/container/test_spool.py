"""The form of a spool: whole records only, whatever its writer left."""

import os
from pathlib import Path

import pytest

from hermes import events
from hermes.container import spool
from hermes.container.spool import Decided, End, Given, SpoolDamagedError
from hermes.events import ProcessStarted


def started(pid: int, *, argv: tuple[str, ...] = ("true",)) -> ProcessStarted:
    return ProcessStarted(
        container_id="box", pid=pid, parent=1, uid=0, gid=0, program="/bin/true", argv=list(argv), cwd="/", channel=2
    )


def write(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    records: list[spool.Record] = [
        spool.fact(started(1, argv=("true", "\x00ü\U0001f600")), 5), Given("s1"), spool.fact(started(2), 6, 9),
        Decided({9: "ENOENT", 10: None}), End(),
    ]  # fmt: skip
    fd = write(tmp_path / "spool", b"".join(spool.framed(record) for record in records))
    read = list(spool.read(fd, 0))
    assert [record for record, _ in read] == records
    first = read[0][0]
    assert isinstance(first, spool.Fact)
    assert spool.event_of(first) == started(1, argv=("true", "\x00ü\U0001f600"))
    assert list(spool.read(fd, read[2][1])) == read[3:]
    assert list(spool.read(fd, read[4][1])) == []
    os.close(fd)


@pytest.mark.parametrize("left", [1, 3, 4, 5, 20])
def test_a_record_that_was_cut_short_was_never_said(tmp_path: Path, left: int) -> None:
    whole, cut = spool.framed(Given("s1")), spool.framed(spool.fact(started(1), 5))
    fd = write(tmp_path / "spool", whole + cut[:left])
    assert list(spool.read(fd, 0)) == [(Given("s1"), len(whole))]
    assert list(spool.read(fd, len(whole))) == []
    os.close(fd)


def test_what_is_longer_than_a_piece_is_read_whole(tmp_path: Path) -> None:
    long = spool.framed(spool.fact(started(1, argv=("a" * 5000,)), 5))
    fd = write(tmp_path / "spool", long + spool.framed(End()))
    assert [end for _, end in spool.read(fd, 0, 100)] == [len(long)]
    assert [end for _, end in spool.read(fd, 0, len(long) + 2)] == [len(long)]
    assert len(list(spool.read(fd, 0))) == 2
    os.close(fd)


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0\xc1", b"\2\0\0\0\x91\x05"])
def test_what_no_watcher_wrote_is_refused(tmp_path: Path, damage: bytes) -> None:
    fd = write(tmp_path / "spool", damage + b"\0" * 10)
    with pytest.raises(SpoolDamagedError):
        list(spool.read(fd, 0))
    os.close(fd)


def test_every_event_can_be_carried(tmp_path: Path) -> None:
    event = events.NetworkAttempted(
        container_id="box",
        pid=3,
        call="connect",
        family="inet",
        protocol="tcp",
        address="192.0.2.1",
        port=80,
        outcome="ENETUNREACH",
    )
    assert spool.event_of(spool.fact(event, 1)) == event
