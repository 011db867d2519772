import asyncio

import pytest
import structlog.testing

from hermes.tasks import TaskOwner


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


@pytest.mark.asyncio
async def test_a_task_runs_and_gives_its_result() -> None:
    async def answer() -> int:
        return 42

    async with TaskOwner("test") as owner:
        task = owner.spawn(answer(), name="answer")
        assert (len(owner), task.get_name()) == (1, "test:answer")
        assert await asyncio.wait_for(task, 5) == 42
        assert (len(owner), owner.failures) == (0, 0)


@pytest.mark.asyncio
async def test_leaving_ends_what_still_runs_and_waits_for_it() -> None:
    ended: list[str] = []
    async with TaskOwner("test") as owner:
        tasks = [owner.spawn(forever(ended, name), name=name) for name in "ab"]
        await asyncio.sleep(0)
    assert sorted(ended) == ["a", "b"]
    assert all(it.cancelled() for it in tasks)
    assert len(owner) == 0


@pytest.mark.asyncio
async def test_a_failure_is_logged_and_counted_and_takes_no_sibling_down() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("on purpose")

    ended: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with TaskOwner("test") as owner:
            sibling = owner.spawn(forever(ended, "sibling"), name="sibling")
            failing = owner.spawn(fail(), name="fail")
            await asyncio.wait([failing], timeout=5)
            await asyncio.sleep(0)
            assert (owner.failures, len(owner), sibling.done()) == (1, 1, False)
    assert [(it["event"], it["task"], str(it["exc_info"])) for it in logs] == [("task failed", "test:fail", "on purpose")]


@pytest.mark.asyncio
async def test_closing_waits_for_a_task_that_takes_its_time_to_end() -> None:
    cancelled, may_end = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await may_end.wait()

    owner = TaskOwner("test")
    task = owner.spawn(slow_to_end(), name="slow")
    await asyncio.sleep(0)
    closing = asyncio.gather(owner.close())
    await asyncio.wait_for(cancelled.wait(), 5)
    assert (closing.done(), task.done()) == (False, False)
    may_end.set()
    await asyncio.wait_for(closing, 5)
    assert task.cancelled()


@pytest.mark.asyncio
async def test_tasks_spawned_while_closing_are_ended_too() -> None:
    ended: list[str] = []
    owner = TaskOwner("test")

    async def spawns_at_its_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            owner.spawn(forever(ended, "late"), name="late")

    owner.spawn(spawns_at_its_end(), name="first")
    await asyncio.sleep(0)
    await asyncio.wait_for(owner.close(), 5)
    assert len(owner) == 0


@pytest.mark.asyncio
async def test_a_cancelled_task_is_no_failure() -> None:
    async with TaskOwner("test") as owner:
        task = owner.spawn(forever([], "it"), name="it")
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert owner.failures == 0


@pytest.mark.asyncio
async def test_closing_twice_or_with_nothing_is_fine() -> None:
    owner = TaskOwner("test")
    await owner.close()
    owner.spawn(forever([], "it"), name="it")
    await owner.close()
    await owner.close()
