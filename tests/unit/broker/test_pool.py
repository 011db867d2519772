import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker.engines.base import Box, Engine
from hermes.broker.forensics import Forensics
from hermes.broker.plan import PooledBox, State
from hermes.broker.pool import Pool
from hermes.broker.trees import Copied
from hermes.config import ContainerPoolConfig
from hermes.config.models import ForensicsConfig
from hermes.container.messages import BrokerEvent
from hermes.errors import AllocationError, EngineError
from hermes.tasks import TaskOwner
from hermes.testing import BrokenEngine, FakeEngine, NeverEngine, SlowEngine
from hermes.testing.engines import WrappedEngine

PATIENCE = 30.0
QUICK = (0.01, 0.08)


class Seen:
    """The facts a pool stated, to wait for."""

    def __init__(self) -> None:
        self.all: list[BrokerEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: BrokerEvent) -> None:
        self.all.append(event)
        self._news.set()

    def of(self, kind: str) -> list[BrokerEvent]:
        return [event for event in self.all if event.kind == kind]

    async def times(self, kind: str, count: int = 1) -> BrokerEvent:
        """Wait until it was stated that often; the last."""
        async with asyncio.timeout(PATIENCE):
            while len(self.of(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that facts bring about."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                try:
                    async with asyncio.timeout(0.05):
                        await self._news.wait()
                except TimeoutError:
                    continue


Make = Callable[..., Awaitable[Pool]]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest_asyncio.fixture
async def make(seen: Seen) -> AsyncIterator[Make]:
    """Makes a running pool on an engine; afterwards no box is left."""
    made: list[tuple[Pool, Engine]] = []

    async def make(engine: Engine | None = None, *, forensics: Forensics | None = None, **config: object) -> Pool:
        engine = engine or FakeEngine()
        await engine.start()
        defaults: dict[str, object] = {"size": 2, "concurrency": 2, "allocation_timeout": 20, "create_timeout": 20}
        checked = ContainerPoolConfig.model_validate(defaults | config)
        pool = Pool(engine, checked, emit=seen, forensics=forensics, backoff=QUICK)
        made.append((pool, engine))
        await pool.start()
        return pool

    yield make
    for pool, engine in made:
        await pool.close()
        assert await engine.list_owned() == []
        await engine.close()


async def full(pool: Pool) -> None:
    await asyncio.wait_for(pool.ready.wait(), PATIENCE)


def warm(pool: Pool) -> int:
    return pool.status().warm


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in {b"Z", b"X"}


# ---- keeping warm


@pytest.mark.asyncio
async def test_it_fills_to_its_size_and_says_so_once(make: Make, seen: Seen) -> None:
    pool = await make(size=3)
    await full(pool)
    assert warm(pool) == 3
    assert [event.fields["size"] for event in seen.of("pool.ready")] == [3]
    assert len(seen.of("container.created")) == 3
    assert pool.status().engine == "fake"


@pytest.mark.asyncio
async def test_no_more_creations_at_once_than_allowed(make: Make) -> None:
    engine = NeverEngine()
    pool = await make(engine, size=10, concurrency=3)
    await asyncio.sleep(0)
    assert engine.hanging == pool.status().creating == 3
    engine.go.set()
    await full(pool)
    assert engine.created == 10


@pytest.mark.asyncio
async def test_a_warm_box_is_given_at_once_and_replaced(make: Make, seen: Seen) -> None:
    pool = await make()
    await full(pool)
    allocation = pool.allocate("one")
    with pytest.raises(StopIteration) as given:
        allocation.send(None)
    box: PooledBox = given.value.value
    assert (box.state, box.session_id, box.waited) == (State.ACTIVE, "one", 0.0)
    await seen.times("container.created", 3)
    assert (warm(pool), pool.status().active) == (2, 1)


@pytest.mark.asyncio
async def test_the_same_session_gets_the_same_box(make: Make) -> None:
    pool = await make(size=1)
    first, *others = await asyncio.gather(*(pool.allocate("one") for _ in range(20)))
    assert all(other is first for other in others)
    assert await pool.allocate("one") is first
    assert pool.status().active == 1


@pytest.mark.asyncio
async def test_release_ends_the_box(make: Make, seen: Seen) -> None:
    pool = await make()
    box = await pool.allocate("one")
    pool.release("one")
    assert box.state is State.STOPPED
    stopped = await seen.times("container.stopped")
    assert stopped.fields == {"container_id": box.id, "session_id": "one", "recovered": False}
    assert not alive(box.box.pid)
    pool.release("one")
    pool.release("never heard of")
    again = await pool.allocate("one")
    assert again is not box


@pytest.mark.asyncio
async def test_a_burst_of_fifty_gets_fifty_boxes_and_the_pool_converges(make: Make, seen: Seen) -> None:
    pool = await make(size=3)
    await full(pool)
    boxes = await asyncio.gather(*(pool.allocate(f"session-{n}") for n in range(50)))
    assert max(Counter(box.id for box in boxes).values()) == 1
    assert [box.session_id for box in boxes] == [f"session-{n}" for n in range(50)]
    for n in range(50):
        pool.release(f"session-{n}")
    await seen.times("container.stopped", 50)
    await seen.until(lambda: warm(pool) == 3 and pool.status().creating == 0)
    assert pool.status().active == 0
    assert not any(alive(box.box.pid) for box in boxes)


@pytest.mark.asyncio
async def test_many_short_sessions_are_never_refused(make: Make, seen: Seen) -> None:
    pool = await make(size=2, max_active=20, allocation_timeout=20)
    ids: list[str] = []

    async def bot(lane: int) -> None:
        for n in range(15):
            ids.append((await pool.allocate(f"{lane}-{n}")).id)
            pool.release(f"{lane}-{n}")

    await asyncio.gather(*(bot(lane) for lane in range(10)))
    assert len(set(ids)) == 150
    assert seen.of("pool.exhausted") == []
    await seen.times("container.stopped", 150)


# ---- waiting, and being refused


@pytest.mark.asyncio
async def test_two_sessions_racing_for_one_box_get_one_each_in_order(make: Make) -> None:
    engine = NeverEngine()
    pool = await make(engine, size=1, concurrency=1)
    order: list[str] = []

    async def session(name: str) -> PooledBox:
        box = await pool.allocate(name)
        order.append(name)
        return box

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(session(name)) for name in ("first", "second", "third")]
        await asyncio.sleep(0)
        engine.go.set()
    boxes = [task.result() for task in tasks]
    assert order == ["first", "second", "third"]
    assert len({box.id for box in boxes}) == 3
    assert all(box.waited > 0 for box in boxes)


@pytest.mark.asyncio
async def test_the_wait_ends_with_a_reason(make: Make, seen: Seen) -> None:
    pool = await make(NeverEngine(), allocation_timeout=0.05)
    with pytest.raises(AllocationError, match=r"no container within 0\.05 seconds"):
        await pool.allocate("one")
    assert seen.of("pool.exhausted")[0].fields["active"] == 0
    assert isinstance(AllocationError(""), RuntimeError)


@pytest.mark.asyncio
async def test_past_max_active_it_refuses_at_once(make: Make, seen: Seen) -> None:
    pool = await make(size=1, max_active=2)
    await asyncio.gather(pool.allocate("one"), pool.allocate("two"))
    with pytest.raises(AllocationError, match="max_active"):
        await pool.allocate("three")
    assert seen.of("limit.reached")[0].fields == {"limit": "container_pool.max_active", "value": 2, "detail": "", "suppressed": 0}
    assert (await pool.allocate("one")).session_id == "one"
    pool.release("one")
    assert (await pool.allocate("three")).session_id == "three"


@pytest.mark.asyncio
async def test_whoever_waits_counts_as_active(make: Make) -> None:
    engine = NeverEngine()
    pool = await make(engine, max_active=1)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(pool.allocate("one"))
        await asyncio.sleep(0)
        with pytest.raises(AllocationError, match="max_active"):
            await pool.allocate("two")
        engine.go.set()
    assert waiting.result().session_id == "one"


@pytest.mark.asyncio
async def test_a_closed_pool_refuses_and_frees_who_waits(make: Make) -> None:
    pool = await make(NeverEngine())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_refused(pool, "one"))
        await asyncio.sleep(0)
        await pool.close()
    assert "closing" in waiting.result()
    assert "closing" in await wait_refused(pool, "two")


async def wait_refused(pool: Pool, session_id: str) -> str:
    with pytest.raises(AllocationError) as refused:
        await asyncio.wait_for(pool.allocate(session_id), PATIENCE)
    return str(refused.value)


# ---- cancellation, at every await


@pytest.mark.asyncio
@pytest.mark.parametrize("others", [0, 1, 5])
async def test_cancelled_while_it_waits_it_frees_its_place(make: Make, others: int) -> None:
    engine = NeverEngine()
    pool = await make(engine, size=1, max_active=1 + others)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.allocate("leaver"))
        rest = [group.create_task(pool.allocate(f"other-{n}")) for n in range(others)]
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        instead = group.create_task(pool.allocate("instead"))
        engine.go.set()
    assert len({task.result().id for task in [*rest, instead]}) == others + 1
    assert pool.status().active == others + 1


@pytest.mark.asyncio
async def test_cancelled_at_each_turn_of_the_loop_nothing_leaks(make: Make, seen: Seen) -> None:
    """Drive the wait one turn further each time, from before its first step until it has the box, and cancel it there."""
    engine = NeverEngine()
    pool = await make(engine, size=1, concurrency=1)
    delivered = cancelled = 0
    turns = 0
    while not delivered:
        session_id = f"session-{turns}"
        await seen.until(lambda: engine.hanging == 1 or warm(pool) == 1)
        held = None if warm(pool) == 0 else await pool.allocate(f"taker-{turns}")  # so that the next one must wait
        await seen.until(lambda: engine.hanging == 1)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(pool.allocate(session_id))
            await asyncio.sleep(0)
            created = len(seen.of("container.created"))
            engine.go.set()
            await seen.times("container.created", created + 1)
            engine.go.clear()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        if task.cancelled():
            cancelled += 1
            assert pool.status().active == (1 if held else 0)
        else:
            delivered += 1
            assert (await task).session_id == session_id
            pool.release(session_id)
        if held is not None:
            pool.release(f"taker-{turns}")
        turns += 1
        assert turns < 50
    assert cancelled >= 1
    engine.go.set()
    await seen.until(lambda: warm(pool) == 1 and pool.status().creating == 0)
    assert pool.status().active == 0


@pytest.mark.asyncio
async def test_a_box_given_to_one_caller_is_not_taken_back_when_another_leaves(make: Make, seen: Seen) -> None:
    engine = NeverEngine()
    pool = await make(engine, size=1, concurrency=1)
    waiting = asyncio.get_running_loop().create_task(pool.allocate("one"))
    await asyncio.sleep(0)
    given: list[PooledBox] = []

    def on_created(event: BrokerEvent) -> None:
        if event.kind == "container.created":
            asyncio.get_running_loop().call_soon(take)

    def take() -> None:
        # After the box went to the session, before the task that waited for it runs: the loop calls in order.
        allocation = pool.allocate("one")
        with pytest.raises(StopIteration) as stop:
            allocation.send(None)
        given.append(stop.value.value)
        waiting.cancel()

    pool._emit_fact = on_created
    engine.go.set()
    await asyncio.wait([waiting], timeout=PATIENCE)
    await seen.until(lambda: bool(given))
    assert given[0].state is State.ACTIVE
    other = await pool.allocate("two")
    assert other is not given[0]


# ---- boxes that end by themselves


@pytest.mark.asyncio
async def test_a_warm_box_that_dies_is_replaced(make: Make, seen: Seen) -> None:
    pool = await make(size=2)
    await full(pool)
    victim = pool._warm[0]
    os.kill(victim.box.pid, signal.SIGKILL)
    lost = await seen.times("container.lost")
    assert lost.fields == {"container_id": victim.id}
    await seen.until(lambda: warm(pool) == 2)
    assert victim.id not in {box.id for box in pool._warm}


class DeafEngine(WrappedEngine):
    """Has hold of the other ends of the box sockets it gives, where nobody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, socket.socket] = {}

    async def open(self, box: Box) -> socket.socket:
        ours, self.ends[box.id] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return ours

    async def close(self) -> None:
        for end in self.ends.values():
            end.close()
        await super().close()


@pytest.mark.asyncio
async def test_warm_boxes_that_can_no_longer_be_entered_are_replaced(make: Make, seen: Seen) -> None:
    engine = DeafEngine()
    pool = await make(engine, size=2)
    await full(pool)
    dead = {box.id for box in pool._warm}
    for id in dead:
        engine.ends[id].close()
    await seen.times("container.lost", 2)
    assert {event.fields["container_id"] for event in seen.of("container.lost")} == dead
    await seen.until(lambda: warm(pool) == 2)
    assert (await pool.allocate("one")).id not in dead


@pytest.mark.asyncio
async def test_the_socket_of_a_box_in_use_is_its_sessions_alone(make: Make, seen: Seen) -> None:
    engine = DeafEngine()
    pool = await make(engine, size=1)
    for session_id in ("warm before", "waited for"):
        held = await pool.allocate(session_id)
        engine.ends[held.id].send(b"for the session")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held.state is State.ACTIVE
        assert held.sock.recv(64) == b"for the session"
    assert seen.of("container.lost") == []


@pytest.mark.asyncio
async def test_a_box_that_nobody_took_is_watched_again(make: Make, seen: Seen) -> None:
    engine = DeafEngine()
    pool = await make(engine, size=1)
    await full(pool)
    held = await pool.allocate("one")
    del pool._active["one"]
    pool._offer(held)
    engine.ends[held.id].close()
    lost = await seen.times("container.lost")
    assert lost.fields == {"container_id": held.id}


@pytest.mark.asyncio
async def test_an_active_box_that_dies_is_told_and_its_socket_closed(make: Make, seen: Seen) -> None:
    pool = await make()
    box = await pool.allocate("one")
    mirror = box.sock.dup()
    os.kill(box.box.pid, signal.SIGKILL)
    lost = await seen.times("container.lost")
    assert lost.fields == {"container_id": box.id, "session_id": "one"}
    mirror.setblocking(True)
    mirror.settimeout(PATIENCE)
    with mirror:
        assert await asyncio.to_thread(mirror.recv, 10) == b""
    stopped = await seen.times("container.stopped")
    assert stopped.fields["session_id"] == "one"
    pool.release("one")
    await seen.until(lambda: pool.status().active == 0)


@pytest.mark.asyncio
async def test_boxes_that_all_die_young_do_not_make_a_busy_loop(make: Make, seen: Seen) -> None:
    class Doomed(WrappedEngine):
        async def create(self, container_id: str) -> Box:
            box = await super().create(container_id)
            asyncio.get_running_loop().call_later(0.01, os.kill, box.pid, signal.SIGKILL)
            return box

    engine = Doomed()
    pool = await make(engine, size=1)
    pool._backoff = (0.2, 1000.0)
    await seen.times("container.lost", 3)
    assert pool._deaths >= 3
    pauses = [event.fields["reason"] for event in seen.of("engine.failed")]
    assert pauses[:3] == ["a container ended soon after its start"] * 3
    assert engine.created <= 4


# ---- engines that fail


@pytest.mark.asyncio
async def test_an_engine_that_fails_for_a_while_recovers(make: Make, seen: Seen) -> None:
    engine = BrokenEngine(failures=4)
    pool = await make(engine, size=3)
    box = await pool.allocate("one")
    assert box.state is State.ACTIVE
    await full(pool)
    assert [event.fields for event in seen.of("engine.failed")] == [
        {"engine": "fake", "operation": "create", "reason": "no space left"}
    ] * 4
    assert engine.created == 4 + 1 + 3


@pytest.mark.asyncio
async def test_an_engine_that_always_fails_is_asked_ever_more_seldom_and_named(make: Make, seen: Seen) -> None:
    engine = BrokenEngine(reason="image is damaged")
    pool = await make(engine, allocation_timeout=1.0, concurrency=1)
    pool._backoff = (0.05, 1000.0)
    assert "the engine fails: image is damaged" in await wait_refused(pool, "one")
    # Pauses of 0.05, 0.1, 0.2, 0.4, 0.8 … seconds: a busy loop would have asked thousands of times.
    assert 2 <= engine.created <= 8
    assert len(seen.of("engine.failed")) == engine.created


@pytest.mark.asyncio
async def test_a_creation_that_hangs_is_cut(make: Make, seen: Seen) -> None:
    engine = NeverEngine()
    pool = await make(engine, size=1, create_timeout=0.05)
    failed = await seen.times("engine.failed")
    assert failed.fields["reason"] == "a container took longer than 0.05 seconds"
    pool._config = ContainerPoolConfig.model_validate(pool._config.model_dump() | {"create_timeout": 20})
    engine.go.set()
    await full(pool)


@pytest.mark.asyncio
async def test_a_box_that_cannot_be_opened_is_removed(make: Make, seen: Seen) -> None:
    class Closed(WrappedEngine):
        opened = 0

        async def open(self, box: Box):  # type: ignore[no-untyped-def]
            self.opened += 1
            if self.opened == 1:
                raise EngineError("no way in")
            return await super().open(box)

    engine = Closed()
    pool = await make(engine, size=1)
    await full(pool)
    assert seen.of("engine.failed")[0].fields["reason"] == "no way in"
    await seen.until(lambda: not pool._stopping and not pool._destroying)
    assert len(await engine.list_owned()) == 1


@pytest.mark.asyncio
async def test_a_bug_in_an_engine_is_survived(make: Make, seen: Seen) -> None:
    class Buggy(WrappedEngine):
        async def create(self, container_id: str) -> Box:
            if self.created == 0:
                self.created += 1
                raise KeyError("oops")
            return await super().create(container_id)

    pool = await make(Buggy(), size=1)
    await full(pool)
    assert seen.of("engine.failed")[0].fields["reason"] == "internal error: see the log"
    assert pool._creators.failures == 1


class Sticky(WrappedEngine):
    """Its boxes cannot be removed while `stuck`."""

    stuck = True

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        if self.stuck:
            raise EngineError("device is busy")
        return await super().destroy(box, keep=keep)


@pytest.mark.asyncio
async def test_a_removal_that_fails_is_tried_again(make: Make, seen: Seen) -> None:
    engine = Sticky()
    pool = await make(engine, size=1)
    box = await pool.allocate("one")
    pool.release("one")
    failed = await seen.times("engine.failed", 2)
    assert failed.fields == {"engine": "fake", "operation": "destroy", "reason": "device is busy"}
    engine.stuck = False
    await seen.times("container.stopped")
    assert box.id not in await engine.list_owned()


@pytest.mark.asyncio
async def test_a_session_is_cut_off_at_release_even_if_the_box_cannot_be_removed(make: Make, seen: Seen) -> None:
    engine = Sticky()
    pool = await make(engine, size=1)
    box = await pool.allocate("one")
    with box.sock.dup() as fronts:
        pool.release("one")
        await seen.times("engine.failed")
        assert fronts.recv(10) == b""
    engine.stuck = False
    await seen.times("container.stopped")


@pytest.mark.asyncio
async def test_boxes_that_cannot_be_removed_are_bounded(make: Make, seen: Seen) -> None:
    engine = Sticky()
    pool = await make(engine, size=1, max_active=3)
    pool._backoff = (0.5, 0.5)
    for n in range(4):
        await pool.allocate(f"session-{n}")
        pool.release(f"session-{n}")
    await seen.until(lambda: len(pool._deferred) == 4)
    assert "4 stopped containers cannot be removed" in await wait_refused(pool, "one-more")
    engine.stuck = False
    await seen.times("container.stopped", 4)
    assert (await pool.allocate("one-more")).state is State.ACTIVE


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_what_cannot_be_removed(seen: Seen) -> None:
    engine = Sticky()
    await engine.start()
    pool = Pool(engine, ContainerPoolConfig(size=2), emit=seen, backoff=QUICK)
    await pool.start()
    await full(pool)
    await asyncio.wait_for(pool.close(), PATIENCE)
    assert len(await engine.list_owned()) == 2
    engine.stuck = False
    await engine.close()
    assert await engine.list_owned() == []


@pytest.mark.asyncio
async def test_closing_while_boxes_are_made_and_removed_leaves_none(make: Make, seen: Seen) -> None:
    engine = SlowEngine(seconds=0.02)
    pool = await make(engine, size=4)
    boxes = await asyncio.gather(*(pool.allocate(f"session-{n}") for n in range(6)))
    for n in range(3):
        pool.release(f"session-{n}")
    await asyncio.wait_for(pool.close(), PATIENCE)
    assert await engine.list_owned() == []
    assert not any(alive(box.box.pid) for box in boxes)
    assert len(seen.of("container.stopped")) == 6


# ---- forensics


@pytest.mark.asyncio
async def test_a_sessions_box_is_kept_a_warm_one_is_not(make: Make, seen: Seen, tmp_path: Path) -> None:
    forensics = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    await forensics.start()
    pool = await make(forensics=forensics)
    box = await pool.allocate("one")
    pool.release("one")
    stopped = await seen.times("container.stopped")
    assert stopped.fields["kept"] == str(tmp_path / "stopped" / box.id)
    assert (tmp_path / "stopped" / box.id / "changes").is_dir()
    assert pool.status().stopped == 1
    await pool.close()
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [".held", box.id]
    assert list((tmp_path / "stopped" / ".held").iterdir()) == []
    await forensics.close()


@pytest.mark.asyncio
async def test_what_cannot_be_kept_is_removed_all_the_same(make: Make, seen: Seen, tmp_path: Path) -> None:
    class Full(WrappedEngine):
        async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
            if keep is not None:
                raise EngineError("No space left on device")
            return await super().destroy(box)

    forensics = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    await forensics.start()
    pool = await make(Full(), forensics=forensics)
    await pool.allocate("one")
    pool.release("one")
    stopped = await seen.times("container.stopped")
    assert "kept" not in stopped.fields
    assert seen.of("engine.failed")[0].fields["reason"] == "No space left on device"
    await forensics.close()


# ---- limits


@pytest.mark.asyncio
async def test_a_box_that_a_session_holds_is_noted_until_it_is_kept(make: Make, seen: Seen, tmp_path: Path) -> None:
    forensics = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    assert await forensics.start() == []
    pool = await make(size=1, forensics=forensics)
    box = await pool.allocate("one")
    again = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    (facts,) = await again.start()
    assert (facts.container_id, facts.session_id, facts.engine) == (box.id, "one", "fake")
    await again.close()
    pool.release("one")
    await seen.times("container.stopped")
    assert await again.start() == []
    await again.close()
    await pool.close()
    await forensics.close()


@pytest.mark.asyncio
async def test_a_box_that_nobody_saw_is_not_noted_any_more(make: Make, seen: Seen, tmp_path: Path) -> None:
    forensics = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    await forensics.start()
    engine = NeverEngine()
    pool = await make(engine, size=1, forensics=forensics)
    async with TaskOwner("test") as tasks:
        waiting = tasks.spawn(pool.allocate("one"), name="allocate")
        stating = pool._emit_fact

        def cancelling(event: BrokerEvent) -> None:
            """Cancel whoever waits as late as can be: as the box is given out."""
            stating(event)
            if event.kind == "container.created":
                waiting.cancel()

        pool._emit_fact = cancelling
        engine.go.set()
        await seen.until(lambda: warm(pool) == 2 and waiting.done())
    again = Forensics(tmp_path / "stopped", ForensicsConfig(), emit=seen)
    assert await again.start() == []
    await again.close()
    await pool.close()
    await forensics.close()


@pytest.mark.asyncio
async def test_a_box_has_a_lifetime(make: Make, seen: Seen) -> None:
    pool = await make(size=1, limits={"lifetime": 0.05})
    box = await pool.allocate("one")
    with box.sock.dup() as fronts:
        reached = await seen.times("limit.reached")
        assert fronts.recv(10) == b""
    assert (reached.fields["limit"], reached.fields["value"]) == ("container_pool.limits.lifetime", 0.05)
    assert reached.fields["container_id"] == box.id
    await seen.times("container.stopped")
    assert (await pool.allocate("one")) is not box
    assert len(seen.of("limit.reached")) == 1


@pytest.mark.asyncio
async def test_what_was_too_much_to_keep_is_stated(make: Make, seen: Seen, tmp_path: Path) -> None:
    class Cut(WrappedEngine):
        async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
            await super().destroy(box, keep=keep)
            return Copied(exceeded={"depth", "bytes"})

    forensics = Forensics(tmp_path / "stopped", ForensicsConfig(box_depth=77), emit=seen)
    await forensics.start()
    pool = await make(Cut(), size=1, forensics=forensics)
    box = await pool.allocate("one")
    pool.release("one")
    await seen.times("container.stopped")
    first, second = seen.of("limit.reached")
    assert first.fields["limit"] == "container_pool.forensics.box_bytes"
    assert (second.fields["limit"], second.fields["value"]) == ("container_pool.forensics.box_depth", 77)
    assert {first.fields["container_id"], second.fields["container_id"]} == {box.id}
    await pool.close()
    await forensics.close()
