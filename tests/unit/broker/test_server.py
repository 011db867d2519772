import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hermes.broker import server as server_module
from hermes.broker.engines.base import Engine
from hermes.broker.pool import Pool
from hermes.broker.server import BrokerServer, Fronts
from hermes.config import ContainerPoolConfig
from hermes.container import BrokerEvent, Container, ContainerPool
from hermes.container.fds import read_fd
from hermes.container.messages import (
    MAX_MESSAGE,
    Allocate,
    Allocated,
    BrokerReply,
    BrokerRequest,
    PoolStatus,
    Refused,
    Release,
    Status,
    decode_broker_reply,
    encode,
)
from hermes.errors import AllocationError
from hermes.testing import BrokenEngine, FakeEngine, NeverEngine
from hermes.testing.boxes import eventually

PATIENCE = 30.0


class House:
    """Broker and front ends of one socket: a server on a pool of fake boxes, and the raw socket of a front."""

    def __init__(self, engine: Engine, **config: object) -> None:
        self.engine = engine
        theirs, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.server = BrokerServer(theirs, max_asking=50)
        checked = ContainerPoolConfig.model_validate({"size": 1, "allocation_timeout": 20, **config})
        self.pool = Pool(engine, checked, emit=self.server.emit, backoff=(0.01, 0.05))
        self.front: ContainerPool | None = None
        self.events: list[BrokerEvent] = []

    async def start(self, *, ready: bool = True) -> None:
        await self.engine.start()
        await self.pool.start()
        if ready:
            await asyncio.wait_for(self.pool.ready.wait(), PATIENCE)
        self.server.start(self.pool)

    async def use_front(self) -> ContainerPool:
        """From here on the socket is a real front's."""
        self.front = ContainerPool(self.sock, on_event=self.events.append)
        await self.front.start()
        return self.front

    def send(self, message: BrokerRequest) -> None:
        self.sock.send(encode(message))

    async def reply(self) -> tuple[BrokerReply, list[socket.socket]]:
        """The next answer; facts are put aside."""
        async with asyncio.timeout(PATIENCE):
            while True:
                await self._readable()
                data, fds, _, _ = socket.recv_fds(self.sock, MAX_MESSAGE, 4)
                assert data, "the broker hung up"
                message: BrokerReply = decode_broker_reply(data)
                if isinstance(message, BrokerEvent):
                    self.events.append(message)
                else:
                    return message, [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd) for fd in fds]

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.sock, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self.sock)

    async def cut_off(self) -> None:
        await asyncio.wait_for(self.server.closed.wait(), PATIENCE)

    async def until_active(self, count: int) -> None:
        async def so_many() -> bool:
            return self.pool.status().active == count

        await eventually(so_many)

    async def close(self) -> None:
        if self.front is not None:
            await self.front.close()
        self.sock.close()
        await self.server.close()
        await self.pool.close()
        assert await self.engine.list_owned() == []
        await self.engine.close()


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    house = House(FakeEngine())
    await house.start()
    yield house
    await house.close()


@pytest_asyncio.fixture
async def stuck() -> AsyncIterator[House]:
    """A house whose engine makes nothing until `go` is set."""
    house = House(NeverEngine())
    await house.start(ready=False)
    yield house
    await house.close()


def go(house: House) -> None:
    assert isinstance(house.engine, NeverEngine)
    house.engine.go.set()


# ---- a front that keeps to the protocol


@pytest.mark.asyncio
async def test_a_session_runs_a_process_in_its_box(house: House) -> None:
    front = await house.use_front()
    container = await front.allocate("one")
    assert (container.engine, container.image) == ("fake", "debian-12")
    process = await container.spawn(argv=(b"sh", b"-c", b"read line; exit $line"))
    assert process.stdin is not None
    os.write(process.stdin, b"7\n")
    assert (await asyncio.wait_for(process.wait(), PATIENCE)).status == 7
    process.close()
    await front.release("one")
    await house.until_active(0)


@pytest.mark.asyncio
async def test_release_ends_the_processes_of_the_box(house: House) -> None:
    front = await house.use_front()
    container = await front.allocate("one")
    process = await container.spawn(argv=(b"sh", b"-c", b"echo $$; exec sleep 1000"))
    assert process.stdout is not None
    pidfd = os.pidfd_open(int(await read_fd(process.stdout)))
    await front.release("one")
    assert (await asyncio.wait_for(process.wait(), PATIENCE)).lost
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    process.close()


@pytest.mark.asyncio
async def test_many_sessions_at_once_get_a_box_each(house: House) -> None:
    front = await house.use_front()
    containers = await asyncio.gather(*(front.allocate(f"session-{n}") for n in range(20)))
    assert len({container.id for container in containers}) == 20

    async def own_number(n: int, container: Container) -> int | None:
        process = await container.spawn(argv=(b"sh", b"-c", b"exit %d" % n))
        status = (await asyncio.wait_for(process.wait(), PATIENCE)).status
        process.close()
        return status

    assert await asyncio.gather(*(own_number(n, container) for n, container in enumerate(containers))) == list(range(20))


@pytest.mark.asyncio
async def test_a_box_that_dies_is_lost_to_its_session(house: House) -> None:
    front = await house.use_front()
    container = await front.allocate("one")
    process = await container.spawn(argv=(b"sleep", b"1000"))
    os.kill(house.pool._active["one"].box.pid, signal.SIGKILL)
    await asyncio.wait_for(container.lost.wait(), PATIENCE)
    assert (await process.wait()).lost
    process.close()
    await front.status()
    assert {"session_id": "one", "container_id": container.id} in [event.fields for event in house.events]


@pytest.mark.asyncio
async def test_a_refusal_says_why() -> None:
    house = House(BrokenEngine(reason="the image is damaged"), allocation_timeout=0.1)
    await house.start(ready=False)
    front = await house.use_front()
    with pytest.raises(AllocationError, match="the engine fails: the image is damaged"):
        await front.allocate("one")
    await house.close()


@pytest.mark.asyncio
async def test_status_is_the_pools(house: House) -> None:
    house.send(Status())
    assert await house.reply() == (PoolStatus(engine="fake", size=1, warm=1, creating=0, active=0, stopped=0), [])


# ---- whoever asks is answered once, in order


@pytest.mark.asyncio
async def test_asking_again_gives_the_same_box(house: House) -> None:
    house.send(Allocate(session_id="one"))
    house.send(Allocate(session_id="one"))
    (first, fds), (second, more) = await house.reply(), await house.reply()
    assert isinstance(first, Allocated)
    assert first == second
    assert len(fds) == len(more) == 1
    for sock in [*fds, *more]:
        sock.close()


@pytest.mark.asyncio
async def test_released_while_it_waits_it_is_refused_at_once_and_the_next_answer_is_for_the_next(stuck: House) -> None:
    for message in (Allocate, Release, Allocate):
        stuck.send(message(session_id="one"))
    assert await stuck.reply() == (Refused(session_id="one", reason="released"), [])
    go(stuck)
    answer, fds = await stuck.reply()
    assert isinstance(answer, Allocated)
    fds[0].close()
    await stuck.until_active(1)


@pytest.mark.asyncio
async def test_released_in_the_same_breath_every_allocation_is_answered_and_nothing_stays(house: House) -> None:
    for _ in range(10):
        house.send(Allocate(session_id="one"))
        house.send(Release(session_id="one"))
    answers = [await house.reply() for _ in range(10)]
    assert all(isinstance(answer, Allocated | Refused) for answer, _ in answers)
    for _, fds in answers:
        for sock in fds:
            sock.close()
    await house.until_active(0)
    house.send(Status())
    assert isinstance((await house.reply())[0], PoolStatus)


# ---- a front that goes


@pytest.mark.asyncio
async def test_when_the_front_goes_its_sessions_are_released(house: House) -> None:
    front = await house.use_front()
    await asyncio.gather(*(front.allocate(f"session-{n}") for n in range(5)))
    assert house.pool.status().active == 5
    house.sock.shutdown(socket.SHUT_RDWR)
    await house.cut_off()
    assert house.pool.status().active == 0


@pytest.mark.asyncio
async def test_gone_while_it_waits_its_place_is_free(stuck: House) -> None:
    for n in range(5):
        stuck.send(Allocate(session_id=f"session-{n}"))
    stuck.send(Status())
    await stuck.reply()
    stuck.sock.close()
    await stuck.cut_off()

    async def nobody_waits() -> bool:
        return not stuck.pool._waiting

    await eventually(nobody_waits)
    go(stuck)
    await asyncio.wait_for(stuck.pool.ready.wait(), PATIENCE)
    status = stuck.pool.status()
    assert status.active == 0
    assert status.warm in (1, 2)  # both that were under way for those who waited are kept


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(8))
async def test_gone_at_each_turn_of_an_allocation_nothing_stays(house: House, turns: int) -> None:
    house.send(Allocate(session_id="one"))
    for _ in range(turns):
        await asyncio.sleep(0)
    house.sock.close()
    await house.cut_off()
    await house.until_active(0)
    assert house.server._held == set()


@pytest.mark.asyncio
async def test_closing_the_server_tells_the_front(house: House) -> None:
    front = await house.use_front()
    container = await front.allocate("one")
    await house.server.close()
    await asyncio.wait_for(front.closed.wait(), PATIENCE)
    await asyncio.wait_for(container.lost.wait(), PATIENCE)
    assert house.pool.status().active == 0


# ---- a front that was taken over


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "packet",
    [
        b"\x00",
        b"\xff" * 100,
        b"{}",
        b"\x80",
        b"\x91" * 10_000,
        b"\x81\xa4type\xa8Allocate",
        b"\x81\xa4type\xa5Spawn",
        b"\xdf\xff\xff\xff\xff",
        encode(Allocate(session_id="x"))[:-1],
        encode(Allocate(session_id="")),
        encode(Allocate(session_id="../../etc")),
        encode(Allocate(session_id="a\nb")),
        encode(Allocate(session_id="a\n")),
        encode(Allocate(session_id="é")),
        encode(Release(session_id="x" * 65)),
        encode(Release(session_id="x" * 100_000)),
        encode(Refused(session_id="x", reason="")),
    ],
)
async def test_garbage_closes_the_connection_and_nothing_else(house: House, packet: bytes) -> None:
    house.send(Allocate(session_id="held"))
    _, fds = await house.reply()
    fds[0].close()
    house.sock.send(packet)
    await house.cut_off()
    assert house.pool.status().active == 0
    assert (await house.pool.allocate("after")).session_id == "after"


@pytest.mark.asyncio
async def test_noise_never_raises_into_the_loop(house: House) -> None:
    problems: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    chance = random.Random(7)
    samples = [encode(Allocate(session_id="one")), encode(Release(session_id="one")), encode(Status())]
    for _ in range(300):
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server = BrokerServer(theirs)
        server.start(house.pool)
        packet = bytearray(chance.choice(samples))
        for _ in range(chance.randrange(1, 4)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        ours.send(packet)
        ours.close()
        await asyncio.wait_for(server.closed.wait(), PATIENCE)
        await server.close()
    assert problems == []
    await house.until_active(0)


@pytest.mark.asyncio
async def test_file_descriptors_are_not_taken(house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    try:
        socket.send_fds(house.sock, [encode(Status())], [0, 0, 0])
    except PermissionError:  # the kernel itself refuses them, from 6.16 on
        house.send(Status())
        await house.reply()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    else:
        await house.cut_off()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


@pytest.mark.asyncio
async def test_it_can_release_only_what_it_holds(house: House) -> None:
    other = await house.pool.allocate("of-another-front")
    house.send(Release(session_id="of-another-front"))
    house.send(Status())
    await house.reply()
    assert (await house.pool.allocate("of-another-front")) is other


@pytest.mark.asyncio
async def test_who_asks_without_end_is_bounded(stuck: House) -> None:
    stuck.pool._config = ContainerPoolConfig.model_validate({"max_active": 1000, "allocation_timeout": 20})
    for n in range(60):
        stuck.send(Allocate(session_id=f"session-{n}"))
    refused = [(await stuck.reply())[0] for _ in range(10)]
    assert {type(answer) for answer in refused} == {Refused}
    assert {answer.reason for answer in refused if isinstance(answer, Refused)} == {"too many sessions wait for a container"}
    assert len(stuck.pool._waiting) == 50


@pytest.mark.asyncio
async def test_who_asks_and_does_not_read_is_cut_off(house: House) -> None:
    house.server._packets._max_queue = 100
    async with asyncio.timeout(PATIENCE):
        while not house.server.closed.is_set():
            try:
                house.send(Status())
            except (BlockingIOError, BrokenPipeError):
                await asyncio.sleep(0)
    assert server_module.MAX_QUEUED_FACTS < server_module.MAX_QUEUED


# ---- facts


@pytest.mark.asyncio
async def test_facts_for_a_front_that_does_not_read_are_dropped_and_counted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_QUEUED_FACTS", 5)
    event = BrokerEvent(kind="engine.failed", fields={"reason": "x" * 1000})
    for _ in range(10_000):
        if house.server.dropped:
            break
        house.server.emit(event)
    for _ in range(9):
        house.server.emit(event)
    assert house.server.dropped == 10
    house.send(Status())
    assert isinstance((await house.reply())[0], PoolStatus)
    assert not house.server.closed.is_set()


@pytest.mark.asyncio
async def test_facts_after_the_front_is_gone_hurt_nobody(house: House) -> None:
    house.sock.close()
    await house.cut_off()
    house.server.emit(BrokerEvent(kind="pool.ready", fields={}))


# ---- fronts, one after the other


class Row:
    """A broker's fronts: each comes with a new socket. `alone` counts how often the last of them was gone."""

    alone = 0

    def __init__(self, pool: Pool, fronts: Fronts) -> None:
        self.pool = pool
        self.fronts = fronts
        self.came: list[ContainerPool] = []
        self.events: list[BrokerEvent] = []

    async def comes(self) -> ContainerPool:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fronts.connect(theirs)
        front = ContainerPool(ours, on_event=self.events.append)
        await front.start()
        self.came.append(front)
        return front


@pytest_asyncio.fixture
async def row() -> AsyncIterator[Row]:
    def alone() -> None:
        standing.alone += 1

    engine = FakeEngine()
    fronts = Fronts(on_alone=alone)
    pool = Pool(engine, ContainerPoolConfig(size=1), emit=fronts.emit, backoff=(0.01, 0.05))
    await engine.start()
    await pool.start()
    await asyncio.wait_for(pool.ready.wait(), PATIENCE)
    standing = Row(pool, fronts)
    yield standing
    for front in standing.came:
        await front.close()
    await fronts.close()
    await pool.close()
    await engine.close()


@pytest.mark.asyncio
async def test_what_a_dead_front_held_is_stopped_and_the_next_is_told(row: Row) -> None:
    row.fronts.start(row.pool)
    first = await row.comes()
    container = await first.allocate("one")
    await first.close()

    async def is_released() -> bool:
        return row.pool.status().active == 0

    await eventually(is_released)
    assert row.alone == 1
    second = await row.comes()

    async def is_told() -> bool:
        await second.status()
        return any(it.kind == "container.stopped" and it.fields["container_id"] == container.id for it in row.events)

    await eventually(is_told)
    assert (await second.allocate("one")).id != container.id


@pytest.mark.asyncio
async def test_a_front_that_comes_before_the_old_one_is_known_to_be_dead(row: Row) -> None:
    row.fronts.start(row.pool)
    first = await row.comes()
    await first.allocate("one")
    second = await row.comes()
    await asyncio.wait_for(first.closed.wait(), PATIENCE)
    assert (await second.status()).active == 0


@pytest.mark.asyncio
async def test_a_front_that_comes_before_the_pool_is_served_once_it_is_there(row: Row) -> None:
    await row.comes()
    front = await row.comes()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(front.allocate("one"))
        await asyncio.sleep(0)
        assert not waiting.done()
        row.fronts.start(row.pool)
        assert (await waiting).id
    assert row.came[0].closed.is_set()


@pytest.mark.asyncio
async def test_facts_wait_for_a_front_in_order_and_not_without_end(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_QUEUED_FACTS", 3)
    row.fronts._kept.clear()
    for number in range(5):
        row.fronts.emit(BrokerEvent(kind="container.lost", fields={"container_id": str(number)}))
    assert row.fronts.dropped == 2
    row.fronts.start(row.pool)
    front = await row.comes()
    await front.status()
    assert [it.fields["container_id"] for it in row.events] == ["2", "3", "4"]
