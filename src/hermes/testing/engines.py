"""Engines for tests. They keep the engines' contract, so that what works with them works with a real one.

`FakeEngine` makes boxes of real processes that nothing isolates: whatever runs in them runs on this machine as the user who runs
the test. The others wrap an engine and misbehave as engines do.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from hermes.broker.engines.base import Box, Engine
from hermes.broker.trees import Copied
from hermes.errors import EngineError

_PATIENCE = 10.0


class _FakeBox:
    """A box's init: its pidfd, and the socket to ask things of it."""

    def __init__(self, box: Box, control: socket.socket) -> None:
        self.box = box
        self.control = control
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(box.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.control.close()
        self.ended.set()
        for callback in self.box.on_exit:
            callback()

    async def ask(self, verb: bytes) -> None:
        try:
            self.control.send(verb)
            answer = await asyncio.wait_for(self._loop.sock_recv(self.control, 64), _PATIENCE)
        except (OSError, TimeoutError) as error:
            raise EngineError(f"container {self.box.id}: {error or 'no answer'}") from error
        if not answer:
            raise EngineError(f"container {self.box.id} has ended")

    async def end(self) -> None:
        with suppress(OSError):  # it has ended
            self.control.send(b"end")
        try:
            await asyncio.wait_for(self.ended.wait(), _PATIENCE)
        except TimeoutError:
            os.kill(self.box.pid, signal.SIGKILL)
            await self.ended.wait()


class FakeEngine:
    """Real processes, started by the real spawner, isolated from nothing. Without root, every user is yourself."""

    name = "fake"
    runtime = "none"
    isolated = False

    def __init__(self) -> None:
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._boxes: dict[str, _FakeBox] = {}

    async def start(self, *, spare: Collection[str] = ()) -> None:
        """See `Engine`. There is nothing to spare: boxes end with the engine that made them."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._nursery = subprocess.Popen(  # noqa: ASYNC220 - a fork and an exec; nothing is waited for
                [sys.executable, "-P", "-m", "hermes.testing.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._control, 64), _PATIENCE)
        if not answer:
            await self.close()
            raise EngineError("the nursery does not start: see standard error")

    async def create(self, container_id: str) -> Box:
        """See `Engine`."""
        if self._control is None:
            raise EngineError("the engine is not started")
        if container_id in self._boxes:
            raise EngineError(f"container {container_id} exists")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                socket.send_fds(self._control, [b"box"], [theirs.fileno()], socket.MSG_NOSIGNAL)
            answer = await asyncio.get_running_loop().sock_recv(ours, 64)
            if not answer:
                raise EngineError("the nursery has ended")
            box = Box(container_id, int(answer))
            self._boxes[container_id] = _FakeBox(box, ours)
        except OSError as error:
            ours.close()
            raise EngineError(f"container {container_id}: {error.strerror}") from error
        except BaseException:
            ours.close()  # its init, if there is one yet, sees that and ends
            raise
        return box

    async def open(self, box: Box) -> socket.socket:
        """See `Engine`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                socket.send_fds(self._known(box).control, [b"open"], [theirs.fileno()], socket.MSG_NOSIGNAL)
        except OSError as error:
            ours.close()
            raise EngineError(f"container {box.id} has ended") from error
        except EngineError:
            ours.close()
            raise
        return ours

    async def recover(self, container_id: str, *, keep: Path | None) -> Copied | None:
        """See `Engine`."""
        return None

    def look(self, box: Box) -> None:
        """See `Engine`. It has no limits; what a test puts into `box.reached` stays."""

    async def freeze(self, box: Box) -> None:
        """See `Engine`."""
        await self._known(box).ask(b"freeze")

    async def thaw(self, box: Box) -> None:
        """See `Engine`."""
        await self._known(box).ask(b"thaw")

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        """See `Engine`. Nothing isolates what was changed, so there is nothing to keep but an empty `changes/`."""
        if (fake := self._boxes.get(box.id)) is None:
            return None
        await fake.end()
        if self._boxes.pop(box.id, None) is None or keep is None:
            return None
        await asyncio.to_thread(_keep, keep)
        return Copied()

    async def list_owned(self) -> list[str]:
        """See `Engine`."""
        return list(self._boxes)

    async def close(self) -> None:
        """See `Engine`."""
        await asyncio.gather(*(self.destroy(fake.box) for fake in list(self._boxes.values())))
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._nursery is not None:
            await asyncio.to_thread(self._nursery.wait, _PATIENCE)
            self._nursery = None

    def _known(self, box: Box) -> _FakeBox:
        try:
            return self._boxes[box.id]
        except KeyError:
            raise EngineError(f"there is no container {box.id}") from None


def _keep(place: Path) -> None:
    place.mkdir(mode=0o700)
    (place / "changes").mkdir()


class WrappedEngine:
    """An engine that does what another does; a `FakeEngine` unless told otherwise."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine: Engine = engine or FakeEngine()
        self.name = self.engine.name
        self.runtime = self.engine.runtime
        self.created = 0
        """Calls of `create`."""

    async def start(self, *, spare: Collection[str] = ()) -> None:
        """See `Engine`."""
        await self.engine.start(spare=spare)

    async def recover(self, container_id: str, *, keep: Path | None) -> Copied | None:
        """See `Engine`."""
        return await self.engine.recover(container_id, keep=keep)

    def look(self, box: Box) -> None:
        """See `Engine`."""
        self.engine.look(box)

    async def create(self, container_id: str) -> Box:
        """See `Engine`."""
        self.created += 1
        return await self.engine.create(container_id)

    async def open(self, box: Box) -> socket.socket:
        """See `Engine`."""
        return await self.engine.open(box)

    async def freeze(self, box: Box) -> None:
        """See `Engine`."""
        await self.engine.freeze(box)

    async def thaw(self, box: Box) -> None:
        """See `Engine`."""
        await self.engine.thaw(box)

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        """See `Engine`."""
        return await self.engine.destroy(box, keep=keep)

    async def list_owned(self) -> list[str]:
        """See `Engine`."""
        return await self.engine.list_owned()

    async def close(self) -> None:
        """See `Engine`."""
        await self.engine.close()


class SlowEngine(WrappedEngine):
    """Takes `seconds` more for each creation, and for each removal."""

    def __init__(self, engine: Engine | None = None, *, seconds: float = 0.1) -> None:
        super().__init__(engine)
        self.seconds = seconds

    async def create(self, container_id: str) -> Box:
        """See `Engine`."""
        self.created += 1
        await asyncio.sleep(self.seconds)
        return await self.engine.create(container_id)

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        """See `Engine`."""
        await asyncio.sleep(self.seconds)
        return await self.engine.destroy(box, keep=keep)


class NeverEngine(WrappedEngine):
    """Its `create` never returns, as with a daemon that hangs, until `go` is set."""

    def __init__(self, engine: Engine | None = None) -> None:
        super().__init__(engine)
        self.go = asyncio.Event()
        self.hanging = 0
        """Creations that hang now."""

    async def create(self, container_id: str) -> Box:
        """See `Engine`."""
        self.created += 1
        self.hanging += 1
        try:
            await self.go.wait()
        finally:
            self.hanging -= 1
        return await self.engine.create(container_id)


class BrokenEngine(WrappedEngine):
    """Its `create` fails `failures` times (None: always), then works."""

    def __init__(self, engine: Engine | None = None, *, failures: int | None = None, reason: str = "no space left") -> None:
        super().__init__(engine)
        self.failures = failures
        self.reason = reason

    async def create(self, container_id: str) -> Box:
        """See `Engine`."""
        self.created += 1
        if self.failures is None or self.failures > 0:
            if self.failures is not None:
                self.failures -= 1
            raise EngineError(self.reason)
        return await self.engine.create(container_id)
