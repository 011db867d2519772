"""Awaitable descriptors: pipes and ptys, ends and silences."""

import asyncio
import contextlib
import os
import pty

import pytest

from hermes.container.fds import write_fd
from hermes.session.streams import LAST_WORDS, FdReader


def pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


@pytest.mark.asyncio
async def test_reads_what_comes_until_the_end() -> None:
    fd, writer = pipe()
    reader = FdReader(fd)
    reading = asyncio.gather(reader.read())
    await asyncio.sleep(0)
    os.write(writer, b"one")
    assert list(await reading) == [b"one"]
    os.write(writer, b"two")
    os.close(writer)
    assert await reader.read() == b"two"
    assert await reader.read() == b""
    os.close(fd)


@pytest.mark.asyncio
async def test_a_terminal_everyone_closed_is_at_its_end() -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    os.write(slave, b"bye")
    os.close(slave)
    reader = FdReader(master)
    assert await reader.read() == b"bye"
    assert await reader.read() == b""
    os.close(master)


@pytest.mark.asyncio
async def test_finish_makes_silence_the_end_but_takes_what_waits() -> None:
    fd, writer = pipe()
    reader = FdReader(fd)
    os.write(writer, b"last")
    reader.finish()
    assert await reader.read() == b"last"
    assert await reader.read() == b""
    os.close(fd)
    os.close(writer)


@pytest.mark.asyncio
async def test_who_goes_on_writing_a_little_does_not_put_off_the_end() -> None:
    fd, writer = pipe()
    reader = FdReader(fd)
    reader.finish()

    async def write() -> None:
        while True:
            os.write(writer, b"x")
            await asyncio.sleep(0.02)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        while await reader.read():
            pass
        writing.cancel()
    os.close(fd)
    os.close(writer)


@pytest.mark.asyncio
async def test_who_goes_on_writing_a_lot_does_not_put_off_the_end() -> None:
    fd, writer = pipe()
    reader = FdReader(fd)
    reader.finish()
    taken = 0
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes(10_000))
        if not (data := await reader.read()):
            break
        taken += len(data)
    assert taken == LAST_WORDS
    os.close(fd)
    os.close(writer)


@pytest.mark.asyncio
async def test_finish_wakes_a_reader_that_waits() -> None:
    fd, writer = pipe()
    reader = FdReader(fd)
    reading = asyncio.gather(reader.read())
    await asyncio.sleep(0)
    reader.finish()
    assert list(await reading) == [b""]
    os.close(fd)
    os.close(writer)


@pytest.mark.asyncio
async def test_cancelled_reading_leaves_the_loop_clean() -> None:
    fd, writer = pipe()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(FdReader(fd).read(), timeout=0.01)
    assert asyncio.get_running_loop().remove_reader(fd) is False
    os.close(fd)
    os.close(writer)


@pytest.mark.asyncio
async def test_a_full_pipe_makes_the_writer_wait() -> None:
    fd, writer = pipe()
    data = os.urandom(1_000_000)
    received = bytearray()

    async def drain() -> None:
        reader = FdReader(fd)
        while chunk := await reader.read():
            received.extend(chunk)

    async def fill() -> None:
        await write_fd(writer, data)
        os.close(writer)

    await asyncio.wait_for(asyncio.gather(drain(), fill()), timeout=30)
    assert received == data
    os.close(fd)


@pytest.mark.asyncio
async def test_a_closed_pipe_is_an_error() -> None:
    fd, writer = pipe()
    os.close(fd)
    with pytest.raises(BrokenPipeError):
        await write_fd(writer, b"x")
    os.close(writer)
