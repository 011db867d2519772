import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hermes.container import BrokerEvent, Container, ContainerPool, PoolStatus
from hermes.container.messages import (
    MAX_MESSAGE,
    Allocate,
    Allocated,
    BrokerReply,
    BrokerRequest,
    Refused,
    Release,
    Status,
    decode_broker_request,
    encode,
)
from hermes.errors import AllocationError

PATIENCE = 10.0


class Broker:
    """The other end of a broker socket, played by hand."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.events: list[BrokerEvent] = []
        self.pool = ContainerPool(ours, on_event=self.events.append)
        self.boxes: list[socket.socket] = []

    async def request(self) -> BrokerRequest:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, MAX_MESSAGE), PATIENCE)
        request: BrokerRequest = decode_broker_request(data)
        return request

    def reply(self, message: BrokerReply, fds: list[int] | None = None) -> None:
        socket.send_fds(self.sock, [encode(message)], fds or [])

    def give(self, session_id: str, container_id: str) -> socket.socket:
        """Answer with a box, whose end of the box socket is returned."""
        theirs, box = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            answer = Allocated(session_id=session_id, container_id=container_id, engine="fake", image="none", waited=0.25)
            self.reply(answer, [theirs.fileno()])
        self.boxes.append(box)
        box.setblocking(False)
        return box

    async def taken_in(self) -> None:
        """Return when the pool has read all that was sent: it answers in order."""
        status = asyncio.get_running_loop().create_task(self.pool.status())
        while await self.request() != Status():
            pass
        self.reply(STATUS)
        await status

    def nothing_asked(self) -> bool:
        try:
            self.sock.recv(10, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


STATUS = PoolStatus(engine="fake", size=3, warm=2, creating=1, active=4, stopped=5)


def gone(box: socket.socket) -> bool:
    """The front holds no end of that box socket."""
    try:
        return box.recv(10) == b""
    except BlockingIOError:
        return False


@pytest_asyncio.fixture
async def broker() -> AsyncIterator[Broker]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    broker = Broker()
    await broker.pool.start()
    yield broker
    await broker.pool.close()
    assert all(gone(box) for box in broker.boxes)
    for sock in [broker.sock, *broker.boxes]:
        sock.close()
    assert len(os.listdir("/proc/self/fd")) == before, "file descriptors leaked"  # noqa: PTH208


async def refused(pool: ContainerPool, session_id: str, timeout: float | None = None) -> str:
    with pytest.raises(AllocationError) as error:
        await asyncio.wait_for(pool.allocate(session_id, timeout), PATIENCE)
    return str(error.value)


async def allocated(broker: Broker, session_id: str, container_id: str = "box-1") -> Container:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(broker.pool.allocate(session_id))
        assert await broker.request() == Allocate(session_id=session_id)
        broker.give(session_id, container_id)
    return task.result()


@pytest.mark.asyncio
async def test_a_session_gets_its_container(broker: Broker) -> None:
    container = await allocated(broker, "one")
    assert (container.id, container.engine, container.image, container.waited) == ("box-1", "fake", "none", 0.25)


@pytest.mark.asyncio
async def test_the_same_session_gets_the_same_container_until_its_last_release(broker: Broker) -> None:
    container = await allocated(broker, "one")
    assert await broker.pool.allocate("one") is container
    assert await broker.pool.allocate("one") is container
    await broker.pool.release("one")
    await broker.pool.release("one")
    assert broker.nothing_asked()
    assert not gone(broker.boxes[0])
    await broker.pool.release("one")
    assert await broker.request() == Release(session_id="one")
    assert gone(broker.boxes[0])
    await broker.pool.release("one")
    await broker.pool.release("never heard of")
    assert broker.nothing_asked()
    assert (await allocated(broker, "one", "box-2")).id == "box-2"


@pytest.mark.asyncio
async def test_many_at_once_for_one_session_share_one_request(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(broker.pool.allocate("one")) for _ in range(20)]
        assert await broker.request() == Allocate(session_id="one")
        broker.give("one", "box-1")
    assert len({task.result() for task in tasks}) == 1
    assert broker.nothing_asked()
    for _ in range(20):
        assert not gone(broker.boxes[0])
        await broker.pool.release("one")
    assert gone(broker.boxes[0])


@pytest.mark.asyncio
async def test_sessions_are_told_apart_whatever_the_order(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(broker.pool.allocate(name)) for name in ("one", "two", "three")}
        for _ in tasks:
            await broker.request()
        for name in ("three", "one", "two"):
            broker.give(name, f"box-of-{name}")
    assert {name: task.result().id for name, task in tasks.items()} == {name: f"box-of-{name}" for name in tasks}


@pytest.mark.asyncio
async def test_refusal_is_a_runtime_error_with_the_reason_fit_for_a_terminal(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(refused(broker.pool, "one")) for _ in range(3)]
        await broker.request()
        broker.reply(Refused(session_id="one", reason="the engine fails:\x1b[2J no space"))
    assert [task.result() for task in tasks] == ["the engine fails:\\x1b[2J no space"] * 3
    assert issubclass(AllocationError, RuntimeError)
    assert (await allocated(broker, "one")).id == "box-1"


@pytest.mark.asyncio
async def test_a_time_limit_gives_the_place_back(broker: Broker) -> None:
    assert await refused(broker.pool, "one", timeout=0.01) == "no container within 0.01 seconds"
    assert [await broker.request(), await broker.request()] == [Allocate(session_id="one"), Release(session_id="one")]
    broker.reply(Refused(session_id="one", reason="released"))
    await broker.taken_in()
    assert (await allocated(broker, "one")).id == "box-1"


@pytest.mark.asyncio
async def test_an_answer_that_comes_after_a_cancellation_is_let_go_and_not_mistaken_for_the_next(broker: Broker) -> None:
    task = asyncio.get_running_loop().create_task(broker.pool.allocate("one"))
    await broker.request()
    task.cancel()
    await asyncio.wait([task])
    assert await broker.request() == Release(session_id="one")
    async with asyncio.TaskGroup() as group:
        again = group.create_task(broker.pool.allocate("one"))
        assert await broker.request() == Allocate(session_id="one")
        late = broker.give("one", "first")
        broker.give("one", "second")
    assert again.result().id == "second"
    assert gone(late)


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_at_each_turn_of_the_loop_nothing_leaks(broker: Broker, turns: int) -> None:
    task = asyncio.get_running_loop().create_task(broker.pool.allocate("one"))
    await asyncio.sleep(0)
    box = broker.give("one", "box-1")
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await broker.taken_in()
    if task.cancelled():
        assert gone(box)
        assert broker.pool._leases == {}
    else:
        assert task.result().id == "box-1"
        await broker.pool.release("one")
        assert gone(box)
    assert broker.pool._stale == {}


@pytest.mark.asyncio
async def test_one_of_two_callers_leaving_keeps_the_others_box(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        leaver = group.create_task(broker.pool.allocate("one"))
        stays = group.create_task(broker.pool.allocate("one"))
        await broker.request()
        leaver.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        box = broker.give("one", "box-1")
    assert stays.result().id == "box-1"
    assert not gone(box)
    await broker.pool.release("one")
    assert gone(box)


@pytest.mark.asyncio
async def test_release_while_the_answer_is_still_out_takes_nothing_from_who_waits(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(broker.pool.allocate("one"))
        await broker.request()
        await broker.pool.release("one")
        box = broker.give("one", "box-1")
    assert task.result().id == "box-1"
    assert not gone(box)


@pytest.mark.asyncio
async def test_when_the_broker_is_killed_whoever_waits_is_told(broker: Broker) -> None:
    container = await allocated(broker, "held")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(refused(broker.pool, f"session-{n}")) for n in range(5)]
        status = group.create_task(status_refused(broker.pool))
        await broker.request()
        broker.sock.close()
        await asyncio.wait_for(broker.pool.closed.wait(), PATIENCE)
    assert {task.result() for task in waiting} == {"the broker is gone"}
    assert status.result() == "the broker is gone"
    assert await refused(broker.pool, "late") == "the broker is gone"
    assert await broker.pool.allocate("held") is container
    await broker.pool.release("held")
    await broker.pool.release("held")
    assert gone(broker.boxes[0])


async def status_refused(pool: ContainerPool) -> str:
    with pytest.raises(AllocationError) as error:
        await asyncio.wait_for(pool.status(), PATIENCE)
    return str(error.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("packet", [b"\xff", encode(Allocate(session_id="x")), b"x" * 1000])
async def test_a_broker_that_talks_nonsense_is_gone(broker: Broker, packet: bytes) -> None:
    broker.sock.send(packet)
    await asyncio.wait_for(broker.pool.closed.wait(), PATIENCE)


@pytest.mark.asyncio
async def test_a_socket_lost_on_the_way_is_a_refusal(broker: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refused(broker.pool, "one"))
        await broker.request()
        broker.reply(Allocated(session_id="one", container_id="box-1", engine="fake", image="none", waited=0))
        assert await broker.request() == Release(session_id="one")
    assert "lost on the way" in task.result()


@pytest.mark.asyncio
async def test_what_nobody_asked_for_is_let_go(broker: Broker) -> None:
    container = await allocated(broker, "one")
    stray, twice = broker.give("stranger", "box-9"), broker.give("one", "box-8")
    await broker.taken_in()
    assert gone(stray)
    assert gone(twice)
    assert await broker.pool.allocate("one") is container


@pytest.mark.asyncio
async def test_status_and_events(broker: Broker) -> None:
    event = BrokerEvent(kind="pool.ready", fields={"size": 3, "seconds": 0.5})
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(broker.pool.status()) for _ in range(3)]
        assert await broker.request() == Status()
        broker.reply(event)
        broker.reply(STATUS)
    assert [task.result() for task in tasks] == [STATUS] * 3
    assert broker.events == [event]
    assert broker.nothing_asked()


@pytest.mark.asyncio
@pytest.mark.parametrize(("room", "cut"), [(10, False), (11, True)])
async def test_a_broker_that_does_not_read_gives_nothing_and_is_cut_off_where_a_release_is_lost(
    broker: Broker, room: int, cut: bool
) -> None:
    assert broker.pool._packets is not None
    broker.pool._packets._max_queue = room  # each failed allocation queues an Allocate and a Release
    reason = ""
    async with asyncio.timeout(PATIENCE):
        while "does not" not in reason and "gone" not in reason:
            reason = await refused(broker.pool, "one", timeout=0)
            broker.pool._stale.clear()
    assert reason == ("the broker is gone" if cut else "the broker does not answer")
    assert broker.pool.closed.is_set() is cut


@pytest.mark.asyncio
async def test_before_start_and_after_close_nothing_is_allocated() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pool = ContainerPool(ours)
    assert await refused(pool, "one") == "not started"
    await pool.start()
    await pool.close()
    assert await refused(pool, "one") == "the pool is closed"
    assert pool.closed.is_set()
    theirs.close()


# ---- one broker after the other


def reconnected(broker: Broker) -> None:
    """The broker dies, and another takes its place."""
    broker.sock.close()
    ours, broker.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    broker.sock.setblocking(False)
    broker.pool.attach(ours)


@pytest_asyncio.fixture
async def patient() -> AsyncIterator[Broker]:
    broker = Broker()
    broker.pool = ContainerPool(broker.pool._sock, on_event=broker.events.append, patience=PATIENCE)
    await broker.pool.start()
    yield broker
    await broker.pool.close()
    broker.sock.close()
    for box in broker.boxes:
        box.close()


@pytest.mark.asyncio
async def test_who_waits_for_a_container_gets_one_of_the_next_broker(patient: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(patient.pool.allocate("one"))
        assert await patient.request() == Allocate(session_id="one")
        reconnected(patient)
        assert await patient.request() == Allocate(session_id="one")
        patient.give("one", "box-2")
        assert (await waiting).id == "box-2"
    assert patient.pool.attached


@pytest.mark.asyncio
async def test_who_comes_while_no_broker_is_there_waits_for_one(patient: Broker) -> None:
    async def die() -> None:
        await patient.request()
        patient.sock.close()

    outcome, _ = await asyncio.gather(patient.pool.status(), die(), return_exceptions=True)
    assert isinstance(outcome, AllocationError)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(patient.pool.allocate("one"))
        gives_up = group.create_task(patient.pool.allocate("two"))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.wait([gives_up])
        with pytest.raises(AllocationError, match="the broker is gone"):
            await patient.pool.status()
        reconnected(patient)
        assert await patient.request() == Allocate(session_id="one")
        patient.give("one", "box")
        await waiting
    assert patient.nothing_asked()


@pytest.mark.asyncio
async def test_a_container_of_the_dead_broker_is_lost_and_its_session_may_have_another(patient: Broker) -> None:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(patient.pool.allocate("one"))
        await patient.request()
        box = patient.give("one", "box-1")
    container = first.result()
    reconnected(patient)
    box.close()
    await asyncio.wait_for(container.lost.wait(), PATIENCE)
    await patient.pool.release("one")
    async with asyncio.TaskGroup() as group:
        second = group.create_task(patient.pool.allocate("one"))
        assert await patient.request() == Release(session_id="one")
        assert await patient.request() == Allocate(session_id="one")
        patient.give("one", "box-2")
    assert second.result().id == "box-2"


@pytest.mark.asyncio
async def test_patience_ends_and_begins_anew_with_a_broker() -> None:
    pool = ContainerPool(patience=0.01)
    await pool.start()
    with pytest.raises(AllocationError, match="no broker is there"):
        await pool.allocate("one")
    assert pool.closed.is_set()
    with pytest.raises(AllocationError, match="no broker is there"):
        await pool.allocate("two")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    pool.attach(ours)
    assert not pool.closed.is_set()

    async def refuse() -> BrokerRequest:
        asked: BrokerRequest = decode_broker_request(await asyncio.get_running_loop().sock_recv(theirs, MAX_MESSAGE))
        socket.send_fds(theirs, [encode(Refused(session_id="three", reason="none"))], [])
        return asked

    outcome, asked = await asyncio.gather(pool.allocate("three"), refuse(), return_exceptions=True)
    assert asked == Allocate(session_id="three")
    assert str(outcome) == "none"
    await pool.close()
    theirs.close()
