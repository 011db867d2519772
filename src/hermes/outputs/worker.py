"""A thread of one sink's own for what would block: one that hangs holds up nobody else, nor the process's end."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Does one thing after the other on a daemon thread, which is started with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what `work` returns on the thread. Who gives up waiting does not keep it from being done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, failure = None, None
            try:
                result = work(*arguments)
            except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"hermes-{self._name}", daemon=True)
            self._thread.start()
        self._asked.put(run)
        return await done

    def close(self, last: Callable[[], None]) -> None:
        """End the thread after what it has to do, and `last`. Does not wait."""
        if self._thread is not None:
            self._asked.put(last)
        self._asked.put(None)

    def _work(self) -> None:
        while (run := self._asked.get()) is not None:
            run()
