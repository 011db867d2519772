import asyncio
import os

import pytest

from hermes.container.fds import read_fd, write_fd


@pytest.mark.asyncio
async def test_bytes_go_through_a_pipe_smaller_than_they_are() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    data = os.urandom(1_000_000)

    async def read_all() -> bytes:
        taken = b""
        while chunk := await read_fd(reader):
            taken += chunk
        return taken

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        taken = group.create_task(read_all())
        await write_fd(writer, data)
        os.close(writer)
    os.close(reader)
    assert taken.result() == data


@pytest.mark.asyncio
async def test_a_cancelled_wait_leaves_the_fd_free() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await read_fd(reader)
    assert asyncio.get_running_loop().remove_reader(reader) is False
    os.write(writer, b"later")
    assert await read_fd(reader) == b"later"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await write_fd(writer, b"nobody reads")
    os.close(writer)


@pytest.mark.asyncio
async def test_a_terminal_that_is_closed_has_come_to_its_end() -> None:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    os.write(slave, b"last")
    assert await read_fd(master) == b"last"
    os.close(slave)
    assert await read_fd(master) == b""
    os.close(master)
