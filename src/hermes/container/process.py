"""A process in a container, as its session sees it: file descriptors to pump, an end to wait for."""

import asyncio
import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hermes.container.messages import SIGNALS, Exited, Resize, Signal

_SIGNAL_NAME = re.compile(r"[A-Z0-9+@.-]{1,32}")
_MAX_SIZE = 0xFFFF

Stream: TypeAlias = Literal["terminal", "stdin", "stdout", "stderr"]
_STREAMS: tuple[Stream, ...] = ("terminal", "stdin", "stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: with an exit `status` (0-255), by a `signal` (name without SIG), or neither: its container is gone."""

    status: int | None = None
    signal: str | None = None
    core_dumped: bool = False

    @property
    def lost(self) -> bool:
        """The container went away under the process."""
        return self.status is None and self.signal is None

    @classmethod
    def of(cls, message: Exited) -> "Exit":
        """What the box said of it, made fit to be passed on: the box is not trusted."""
        if message.signal is not None:
            name = message.signal if _SIGNAL_NAME.fullmatch(message.signal) else "KILL"
            return cls(signal=name, core_dumped=message.core_dumped)
        return cls(status=(message.status or 0) & 0xFF)


class ContainerProcess:
    """A running process. It owns its fds (non-blocking) until `close()` or `detach()`.

    With a terminal `terminal` is the one fd, otherwise there are `stdin` (write end), `stdout` and `stderr` (read ends).
    What the process wrote before it ended may still be read after `wait()` returned.
    """

    __slots__ = ("_control", "_exit", "_waiters", "id", "pid", "stderr", "stdin", "stdout", "terminal", "tty")

    def __init__(
        self, id: int, pid: int, fds: list[int], *, tty: bool, control: Callable[[int, str, Signal | Resize], None]
    ) -> None:
        self.id = id
        self.pid = pid
        """In the box's own pid namespace; 0: unknown."""
        self.tty = tty
        """The terminal is a real pty; otherwise its size is set by asking the engine."""
        self.terminal: int | None = None
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        for fd in fds:
            os.set_blocking(fd, False)
        if len(fds) == 1:
            self.terminal = fds[0]
        else:
            self.stdin, self.stdout, self.stderr = fds
        self._control = control
        self._exit: Exit | None = None
        self._waiters: list[asyncio.Future[Exit]] | None = None

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._exit

    async def wait(self) -> Exit:
        """Return when the process has ended."""
        if self._exit is not None:
            return self._exit
        waiter: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            if self._waiters is not None:
                self._waiters.remove(waiter)

    def signal(self, name: str) -> None:
        """Send a signal (one of `messages.SIGNALS`) to the process's session. Ignored for other names, and once it ended."""
        if self._exit is None and name in SIGNALS:
            self._control(self.id, name, Signal(id=self.id, signal=name))

    def resize(self, width: int, height: int, pixel_width: int = 0, pixel_height: int = 0) -> None:
        """Tell the terminal its size; ignored without one. Only the latest of many counts."""
        if self.terminal is None:
            return
        size = [max(0, min(value, _MAX_SIZE)) for value in (width, height, pixel_width, pixel_height)]
        width, height, pixel_width, pixel_height = size
        if self.tty:
            with suppress(OSError):  # it hung up
                fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))
        elif self._exit is None:
            message = Resize(id=self.id, width=width, height=height, pixel_width=pixel_width, pixel_height=pixel_height)
            self._control(self.id, "resize", message)

    def detach(self, stream: Stream) -> int | None:
        """Hand that fd over to the caller, who closes it; None if there is none (any more)."""
        fd: int | None = getattr(self, stream)
        setattr(self, stream, None)
        return fd

    def close_stdin(self) -> None:
        """Give the process the end of its input. A terminal has no such thing: see its EOF character."""
        if (fd := self.detach("stdin")) is not None:
            os.close(fd)

    def close(self) -> None:
        """Close what fds remain; a terminal hangs up. Safe to call twice. Remove readers and writers of the loop first."""
        for stream in _STREAMS:
            if (fd := self.detach(stream)) is not None:
                os.close(fd)

    def ended(self, exit: Exit) -> None:
        """State how it ended; for its container only."""
        if self._exit is not None:
            return
        self._exit = exit
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(exit)
