"""The broker's side of the zygote: the small process that everything which enters a box is forked from."""

import asyncio
import os
import socket
import sys

from msgspec import MsgspecError

from hermes.broker import linux
from hermes.broker.policy import Policy
from hermes.broker.watcher.process import Watch
from hermes.broker.zygote_process import READY, EnterBox, MakeUserNamespace, Request, encode
from hermes.container.messages import MAX_MESSAGE, Spawn, Spawned, decode_box_reply
from hermes.container.messages import encode as encode_spawn
from hermes.container.packets import refuse_descriptors
from hermes.errors import EngineError

_START_TIMEOUT = 10.0
_ANSWER_TIMEOUT = 20.0
_WARM_UP_TIMEOUT = 10.0

WARM_UP = 0
"""The id of the first process in each box, which no session uses: theirs begin at 1."""


class Zygote:
    """Forks spawners. All methods raise `EngineError` when they cannot do what they say."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The zygote's process id; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Start the zygote, unless it runs. Called again after it has died, starts another."""
        async with self._starting:
            if self.pid:
                return
            await self._stop()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            self._control = ours
            try:
                with theirs:
                    self._process = await asyncio.create_subprocess_exec(
                        sys.executable, "-I", "-m", "hermes.broker.zygote_main", str(theirs.fileno()),
                        pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                        env={}, cwd="/", start_new_session=True,
                    )  # fmt: skip
                async with asyncio.timeout(_START_TIMEOUT):
                    greeting = await asyncio.get_running_loop().sock_recv(ours, 64)
                if greeting != READY:
                    raise EngineError("the zygote ended at once; its reason stands in the log")
            except (OSError, TimeoutError) as error:
                await self._stop()
                raise EngineError(f"the zygote does not start: {str(error) or 'no answer'}") from error
            except BaseException:
                await self._stop()
                raise

    async def watch(self, request: Watch, pidfd: int, spool: int, news: int) -> tuple[socket.socket, socket.socket]:
        """Start a watcher of a box (whose init's pidfd that is): its socket, non-blocking, and the one for the box's spawner."""
        ours, spawners = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with ours:
                watcher, answer, _ = await self._ask(request, [pidfd, spool, news, ours.fileno()])
        except BaseException:
            spawners.close()
            raise
        if answer != READY:
            watcher.close()
            spawners.close()
            raise EngineError("the container's watcher does not start; the reason stands in the log")
        return watcher, spawners

    async def enter(
        self, pid: int, *, policy: Policy, pidfd: int | None = None, watcher: socket.socket | None = None
    ) -> socket.socket:
        """Put a spawner into the container whose init is `pid` and return its box socket, non-blocking.

        With `pidfd`, that is the process meant, whatever `pid` has become. `watcher`: the spawner's socket to the box's watcher.
        """
        try:
            target = os.pidfd_open(pid) if pidfd is None else os.dup(pidfd)
        except OSError as error:
            raise EngineError(f"container's init {pid}: {error.strerror}") from error
        fds = [target] if watcher is None else [target, watcher.fileno()]
        try:
            box, answer, _ = await self._ask(EnterBox(pid=pid, confinement=policy.confinement()), fds)
        finally:
            os.close(target)
        if answer != READY:
            box.close()
            raise EngineError(f"cannot enter the container: {answer.decode(errors='backslashreplace') or 'the spawner died'}")
        try:
            await _warm_up(box)
        except BaseException:
            box.close()
            raise
        return box

    async def user_namespace(self, base: int, size: int = 65536) -> int:
        """Return an fd of a new user namespace that maps ids 0 to `size` onto `base` and up, for uids and gids alike."""
        sock, answer, fds = await self._ask(MakeUserNamespace(base=base, size=size), [])
        sock.close()
        if answer != READY or len(fds) != 1:
            raise EngineError(f"no user namespace for ids {base}+{size}; the reason stands in the log")
        return fds[0]

    async def close(self) -> None:
        """End the zygote and every spawner. Return when the zygote has ended."""
        async with self._starting:
            await self._stop()

    async def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            process, self._process = self._process, None
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, request: Request, fds: list[int]) -> tuple[socket.socket, bytes, list[int]]:
        """Send the request with `fds` and a socket; return our end of that socket and the first message that came over it."""
        await self.start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            refuse_descriptors(theirs)
            with theirs:
                await self._send(encode(request), [*fds, theirs.fileno()])
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                await _ready(ours, writing=False)
            answer, received = linux.receive_fds(ours, 4096, 1)
        except OSError as error:
            ours.close()
            raise EngineError(f"the zygote does not answer: {str(error) or 'too slow'}") from error
        except BaseException:
            ours.close()
            raise
        return ours, answer, received

    async def _send(self, packet: bytes, fds: list[int]) -> None:
        while self._control is not None:
            try:
                socket.send_fds(self._control, [packet], fds, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await _ready(self._control, writing=True)
            else:
                return
        raise EngineError("the zygote is closed")


async def _warm_up(box: socket.socket) -> None:
    """Run one login shell in the fresh box and wait for its end: the first session then finds its files in the kernel's caches.

    It saves that session a millisecond. A box that has no such shell is as good. `EngineError` if the spawner does not answer.
    """
    try:
        box.send(encode_spawn(Spawn(id=WARM_UP, argv=(b"/bin/bash", b"-lc", b":"))))
        async with asyncio.timeout(_WARM_UP_TIMEOUT):
            while True:
                await _ready(box, writing=False)
                packet, fds = linux.receive_fds(box, MAX_MESSAGE, 3)
                for fd in fds:
                    os.close(fd)
                if not packet:
                    raise EngineError("the spawner died as soon as it was asked for something")
                if not isinstance(decode_box_reply(packet), Spawned):
                    return
    except (OSError, TimeoutError, MsgspecError) as error:
        raise EngineError(f"the spawner does not answer: {str(error) or 'no answer'}") from error


async def _ready(sock: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(sock)
