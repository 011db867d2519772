"""The watchers of an engine's boxes, as the broker sees them: none is entered unwatched, and one whose watcher dies is ended."""

import asyncio
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from hermes.broker.engines.base import Box
from hermes.broker.policy import Policy
from hermes.broker.spools import Spool, Spools
from hermes.broker.watcher.process import DONE, FULL, Watch
from hermes.broker.zygote import Zygote
from hermes.config.watch import WatchConfig
from hermes.errors import EngineError

log = structlog.get_logger(__name__)

FINISH_PATIENCE = 30.0
"""Seconds that a watcher may take, once its box is gone, to write down what is left."""


class UnwatchedError(EngineError):
    """The box would be unwatched, and is to be entered in no other way."""


@dataclass(slots=True, eq=False)
class _Watcher:
    """A watcher, its box, and how it went."""

    box: Box
    init: int
    """pidfd of the box's init; ours."""
    sock: socket.socket
    spool: Spool
    done: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Watching:
    """Enters boxes with a spawner, each watched; without `spools`, or where it is switched off, unwatched."""

    def __init__(self, config: WatchConfig, spools: Spools | None, zygote: Zygote) -> None:
        self._config = config
        self._spools = spools if config.enabled else None
        self._zygote = zygote
        self._watchers: dict[str, _Watcher] = {}
        self._said = False

    def say(self, why_not: str | None) -> None:
        """Say in the log, once, that nothing is watched: no spawner can stand there (`why_not`), or it is switched off."""
        if not self._config.enabled:
            why_not = "container_pool.watch.enabled is false"
        if why_not is not None and not self._said:
            self._said = True
            log.warning("what runs in containers is not watched: no process, address or file of theirs is recorded", why=why_not)

    async def enter(self, box: Box, *, pidfd: int, policy: Policy) -> socket.socket:
        """See `Zygote.enter`."""
        if self._spools is None:
            return await self._zygote.enter(box.pid, policy=policy, pidfd=pidfd)
        try:
            spool = self._spools.make(box.id)
            init = os.dup(pidfd)
        except OSError as error:
            self._spools.end(box.id)
            raise UnwatchedError(f"container {box.id} cannot be watched: {error.strerror}") from error
        request = Watch(
            init=box.pid,
            container_id=box.id,
            spool_bytes=self._config.spool_bytes,
            arguments=self._config.arguments,
            argument_bytes=self._config.argument_bytes,
            files=self._spools.files,
        )
        try:
            watcher, spawners = await self._zygote.watch(request, pidfd, spool.fd, spool.news)
        except BaseException as error:
            os.close(init)
            self._spools.end(box.id)
            if isinstance(error, EngineError):
                raise UnwatchedError(str(error)) from error
            raise
        with spawners:
            one = self._watchers[box.id] = _Watcher(box, init, watcher, spool)
            asyncio.get_running_loop().add_reader(watcher, self._heard, one)
            try:
                return await self._zygote.enter(box.pid, policy=policy, pidfd=pidfd, watcher=spawners)
            except BaseException:
                self._kill(one)  # a box that can be entered no more: whoever has it removes it
                raise

    async def finish(self, container_id: str) -> None:
        """The box is dead: return when its watcher has written what is left, and is gone. It may take `FINISH_PATIENCE`."""
        if (one := self._watchers.get(container_id)) is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_PATIENCE):
                await one.gone.wait()
        if not one.gone.is_set():
            log.error("a watcher does not end; the last facts of its container may be missing", container_id=container_id)
            self._forget(one)

    def end(self, container_id: str, *, kept: bool = False) -> None:
        """Nothing more will be said of the box: end its spool. `kept`: but for what was kept of it; who states that, ends it."""
        if (one := self._watchers.pop(container_id, None)) is not None and not one.gone.is_set():
            self._forget(one)
        if self._spools is not None and not kept:
            self._spools.end(container_id)

    def close(self) -> None:
        """Let go of all watchers."""
        for one in list(self._watchers.values()):
            if not one.gone.is_set():
                self._forget(one)
        self._watchers.clear()

    def _heard(self, one: _Watcher) -> None:
        try:
            said = one.sock.recv(256)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said == DONE:
            one.done = True
        elif said.startswith(FULL):
            reason = said.removeprefix(FULL).strip().decode(errors="replace")
            one.box.lost = f"what was seen in it could not be written ({reason})"
            if reason == "full":
                one.box.reached["spool_bytes"] = 1
            log.error("a container is ended: nothing more can be written of it", container_id=one.box.id, reason=reason)
            self._kill(one)
        elif not said:
            if not one.done and not _has_ended(one.init):
                one.box.lost = one.box.lost or "its watcher died"
                log.error("a container's watcher died; the container is ended", container_id=one.box.id)
                self._kill(one)
            self._forget(one)

    def _kill(self, one: _Watcher) -> None:
        """End the box, unless that is done: once its watcher is gone, its pidfd is closed."""
        if not one.gone.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(one.init, signal.SIGKILL)

    def _forget(self, one: _Watcher) -> None:
        one.spool.whole = one.spool.whole and one.done
        asyncio.get_running_loop().remove_reader(one.sock)
        one.sock.close()
        os.close(one.init)
        one.gone.set()


def _has_ended(pidfd: int) -> bool:
    """The process has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
