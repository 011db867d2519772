"""A part of a watcher in the hands of a test: its poll loop, in a thread of its own."""

import os
import queue
import select
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from hermes.broker.files import Files


class Watching:
    """Runs a part until it is left; then closes it, as if its box had died."""

    def __init__(self, part: Files) -> None:
        self.part = part
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watching")

    def _run(self) -> None:
        try:
            while True:
                poll = select.poll()
                for fd in (self._stop, *self.part.fds()):
                    poll.register(fd, select.POLLIN)
                for fd, _ in poll.poll(0 if self.part.busy() else None):
                    if fd != self._stop:
                        self.part.ready(fd)
                    elif os.read(fd, 1) and (ask := self._asked.get()) is not None:
                        ask()
                    else:
                        return
                self.part.step()
        except BaseException as error:  # noqa: BLE001 - raised again where the test waits
            self._failure = error
        finally:
            self.part.close()

    def ask(self, call: Callable[[], None]) -> None:
        """Have the watcher call that; return when it has."""
        done = threading.Event()

        def run() -> None:
            call()
            done.set()

        self._asked.put(run)
        os.write(self._stopped, b".")
        done.wait(30)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        if self._failure is not None and error is None:
            raise self._failure
