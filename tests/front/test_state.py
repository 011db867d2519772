"""What the metrics say of a front that serves."""

import asyncio

import pytest

from hermes import events
from hermes.container import PoolStatus
from hermes.errors import AllocationError
from hermes.metrics import State, Watch
from tests.front.conftest import Serve


class Journal:
    healthy = True
    waiting = 3


class Intake:
    waiting = 7


class Pool:
    """A pool whose broker answers, is gone, or is silent."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: PoolStatus | None = PoolStatus(engine="local", size=3, warm=2, creating=1, active=4, stopped=5)
        self.silent = False

    async def status(self) -> PoolStatus:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.answer is None:
            raise AllocationError("the broker is gone")
        return self.answer


@pytest.mark.asyncio
async def test_connections_sessions_and_channels_are_those_there_are(serve: Serve) -> None:
    async with serve() as running:
        watch = Watch(running.front, Journal(), Pool(), Intake())
        assert await watch.look() == State(
            listening=True, journal_healthy=True, journal_waiting=3, spools_waiting=7,
            containers={"warm": 2, "creating": 1, "active": 4, "stopped": 5},
        )  # fmt: skip
        _, silent = await asyncio.open_connection("127.0.0.1", running.port)
        async with running.connect() as connection:
            held = [await connection.create_process("wait") for _ in range(2)]
            await running.journal.wait_for(events.ChannelStarted, 2)
            await running.journal.wait_for(events.ConnectionOpened, 2)
            state = await watch.look()
            assert (state.connections, state.unauthenticated, state.sessions, state.channels) == (2, 1, 1, 2)
            for process in held:
                process.stdin.write_eof()
                await process.wait()
            async with asyncio.timeout(20):
                while (await watch.look()).channels:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        silent.close()
        await running.journal.wait_for(events.ConnectionClosed, 2)
        assert (await watch.look()).connections == 0
    assert not (await watch.look()).listening


@pytest.mark.asyncio
async def test_a_broker_that_does_not_answer_is_not_there(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.metrics.state.BROKER_PATIENCE", 0.05)
    monkeypatch.setattr("hermes.metrics.state.STALE_SECONDS", 0.0)
    async with serve() as running:
        pool = Pool()
        watch = Watch(running.front, Journal(), pool, Intake())
        assert (await watch.look()).checks == {"listening": True, "journal": True, "broker": True}
        pool.answer = None
        assert not (await watch.look()).checks["broker"]
        pool.silent = True
        assert not (await watch.look()).checks["broker"]


@pytest.mark.asyncio
async def test_the_broker_is_not_asked_more_often_than_its_answer_is_good_for(serve: Serve) -> None:
    async with serve() as running:
        pool = Pool()
        watch = Watch(running.front, Journal(), pool, Intake())
        for _ in range(100):
            await watch.look()
        assert pool.asked <= 2
