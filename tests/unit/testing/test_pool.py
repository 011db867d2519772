import asyncio
import inspect

import pytest

from hermes.container import ContainerPool
from hermes.errors import AllocationError
from hermes.testing import BrokenEngine, FakePool, NeverEngine


def test_it_has_the_real_pools_interface() -> None:
    for name, real in inspect.getmembers(ContainerPool, inspect.isfunction):
        if not name.startswith("_") and name not in ("attach", "taken"):  # it has no broker
            assert inspect.signature(getattr(FakePool, name)) == inspect.signature(real), name
            assert inspect.iscoroutinefunction(getattr(FakePool, name)) == inspect.iscoroutinefunction(real)


@pytest.mark.asyncio
async def test_the_same_session_gets_the_same_box_until_its_last_release() -> None:
    async with FakePool() as pool:
        first, second = await asyncio.gather(pool.allocate("one"), pool.allocate("one"))
        assert first is second
        process = await first.spawn(argv=(b"sh", b"-c", b"exit 9"))
        assert (await asyncio.wait_for(process.wait(), 10)).status == 9
        process.close()
        await pool.release("one")
        assert (await pool.status()).active == 1
        await pool.release("one")
        await pool.release("one")
        await pool.release("unknown")
        assert (await pool.status()).active == 0
        assert (await pool.allocate("one")).id != first.id
    assert pool.allocations == ["one", "one", "one"]
    assert pool.releases == ["one", "one", "one", "unknown"]
    assert await pool.engine.list_owned() == []


@pytest.mark.asyncio
async def test_it_refuses_as_a_pool_does() -> None:
    async with FakePool(BrokenEngine(reason="no space left")) as pool:
        with pytest.raises(AllocationError, match="no space left"):
            await pool.allocate("one")
    with pytest.raises(AllocationError, match="closed"):
        await pool.allocate("one")
    assert pool.closed.is_set()


@pytest.mark.asyncio
async def test_a_time_limit_or_a_cancellation_leaves_nothing() -> None:
    engine = NeverEngine()
    async with FakePool(engine) as pool:
        with pytest.raises(AllocationError, match="within"):
            await pool.allocate("one", timeout=0.01)
        task = asyncio.get_running_loop().create_task(pool.allocate("two"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (await pool.status()).creating == 0
        engine.go.set()
        assert await engine.list_owned() == []
        await pool.allocate("one")


@pytest.mark.asyncio
async def test_closing_frees_who_waits() -> None:
    pool = FakePool(NeverEngine())
    await pool.start()
    task = asyncio.get_running_loop().create_task(pool.allocate("one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(AllocationError, match="closed"):
        await task
