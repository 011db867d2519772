"""The watcher's end of a spool."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.watcher.writer import FullError, Writer
from hermes.container import spool
from hermes.container.spool import Decided
from tests.unit.container.test_spool import started


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "spool", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


@pytest.fixture
def news() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_records_of_one_write_are_all_there_or_none(fd: int, news: int) -> None:
    one = spool.fact(started(1), 1)
    size = len(spool.framed(one))
    writer = Writer(fd, news, 2 * size)
    writer.write(one)
    with pytest.raises(FullError, match="full"):
        writer.write(one, one)
    assert [record for record, _ in spool.read(fd, 0)] == [one]
    with pytest.raises(FullError, match="full"):
        writer.emit(started(1), 1)  # it would fit, but something before it is missing


def test_the_reader_is_told_once(fd: int, news: int) -> None:
    writer = Writer(fd, news, 1 << 20)
    writer.tell()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(news)
    writer.write(Decided({1: None}))
    writer.write(Decided({2: None}))
    writer.tell()
    writer.tell()
    assert os.eventfd_read(news) == 1


def test_a_write_cut_short_is_taken_back(fd: int, news: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(fd, news, 1 << 20)
    writer.write(Decided({1: None}))
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
        with pytest.raises(FullError, match="ENOSPC"):
            writer.write(Decided({2: None}))
    assert [record for record, _ in spool.read(fd, 0)] == [Decided({1: None})]
    assert os.fstat(fd).st_size == len(spool.framed(Decided({1: None})))
    with pytest.raises(FullError, match="ENOSPC"):
        writer.write(Decided({3: None}))
