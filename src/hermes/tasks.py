"""The only place that creates asyncio tasks: every task has an owner that awaits or cancels it."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TaskOwner:
    """Own background tasks whose failures must not take their siblings down.

    Where siblings should fall together, use `asyncio.TaskGroup`; where each task is one attacker's doing, use this: a
    task that raises is logged and counted, the others go on. Leaving the `async with` block, or `close()`, cancels what
    still runs and waits for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        """Start `coro` as a task of this owner."""
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures += 1
            log.error("task failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel every task still running and return when all have ended."""
        while self._tasks:
            pending = list(self._tasks)
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()
