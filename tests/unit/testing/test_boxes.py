"""The client that tests and benches use: what it says when a process does not do what they wait for."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hermes.container.fds import read_fd, write_fd
from hermes.errors import HermesError, SpawnError
from hermes.testing import FakeEngine, boxes
from hermes.testing.boxes import BoxClient, eventually


@pytest_asyncio.fixture
async def client() -> AsyncIterator[BoxClient]:
    engine = FakeEngine()
    await engine.start()
    async with BoxClient(await engine.open(await engine.create("box-1"))) as client:
        yield client
    await engine.close()


@pytest.mark.asyncio
async def test_a_process_from_start_to_end(client: BoxClient) -> None:
    cat = await client.start(None, b"cat")
    await cat.write(b"one two three")
    assert await cat.read_until(b"two") == b"one two"
    assert await cat.read(2) == b" t"
    result = await cat.result(b"!")
    assert (result.stdout, result.stderr, result.status) == (b"hree!", b"", 0)


@pytest.mark.asyncio
async def test_output_that_ends_too_early_is_shown(client: BoxClient) -> None:
    process = await client.start(None, b"echo", b"something else")
    with pytest.raises(AssertionError, match="something else"):
        await process.read_until(b"expected")
    await process.wait()
    process.close()


@pytest.mark.asyncio
async def test_output_that_does_not_come_is_not_waited_for_forever(client: BoxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "PATIENCE", 0.2)
    process = await client.start(None, b"sh", b"-c", b"echo other; sleep 1000")
    with pytest.raises(AssertionError, match="other"):
        await process.read_until(b"expected")
    with pytest.raises(TimeoutError):
        await process.wait()
    process.process.signal("KILL")
    process.close()


@pytest.mark.asyncio
async def test_a_failing_command_fails_its_test(client: BoxClient) -> None:
    assert await client.output("echo ' fine '") == "fine"
    with pytest.raises(AssertionError):
        await client.output("echo said; exit 3")
    with pytest.raises(SpawnError):
        await client.run(None, b"no-such-program-anywhere")


@pytest.mark.asyncio
async def test_a_closed_client_starts_nothing(client: BoxClient) -> None:
    client.close()
    client.close()
    with pytest.raises(HermesError):
        await client.run(None, b"true")


@pytest.mark.asyncio
async def test_eventually() -> None:
    answers = iter([False, False, True])

    async def later() -> bool:
        return next(answers)

    async def never() -> bool:
        return False

    await eventually(later, interval=0.001)
    with pytest.raises(TimeoutError):
        await eventually(never, patience=0.05)


@pytest.mark.asyncio
async def test_fds_are_read_and_written_to_their_end() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    data = os.urandom(500_000)
    taken = b""
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(write_fd(writer, data))
        while len(taken) < len(data):
            taken += await read_fd(reader)
    os.close(writer)
    assert taken == data
    assert await read_fd(reader) == b""
    os.close(reader)
