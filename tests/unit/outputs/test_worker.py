"""A thread of a sink's own."""

import asyncio
import threading

import pytest

from hermes.outputs.worker import Worker


@pytest.mark.asyncio
async def test_it_does_one_thing_after_the_other_and_hands_on_what_comes_of_it() -> None:
    worker = Worker("test")
    assert [await worker.do(pow, 2, it) for it in range(3)] == [1, 2, 4]
    with pytest.raises(ZeroDivisionError):
        await worker.do(lambda: 1 // 0)
    assert await worker.do(threading.current_thread) is not threading.main_thread()
    worker.close(lambda: None)


@pytest.mark.asyncio
async def test_who_gives_up_waiting_is_not_held_up() -> None:
    worker, go = Worker("test"), threading.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker.do(go.wait), 0.01)
    go.set()
    assert await worker.do(lambda: "next") == "next"
    worker.close(lambda: None)
