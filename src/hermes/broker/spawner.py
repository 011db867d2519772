"""The spawner: stands in one box's namespaces with no power of its own, and starts processes there when the box socket asks.

Runs in a process that the zygote forked (`zygote_process`), single-threaded and without asyncio, so that it is small. Whatever
it reads in the box is hostile. Nothing is imported after the box has been entered: that would look in the attacker's files.
"""

import os
import select
import signal
import socket
from collections import deque
from contextlib import suppress

import msgspec

from hermes.broker import spawn
from hermes.broker.accounts import Account, UnknownUser, find
from hermes.broker.linux import ProcessTitle
from hermes.broker.watcher.notify import CHANNEL
from hermes.container.messages import (
    MAX_MESSAGE,
    SIGNALS,
    BoxReply,
    Exited,
    Failed,
    Resize,
    Signal,
    Spawn,
    Spawned,
    decode_box_request,
    encode,
)

_MAX_ACCOUNTS = 32
_NUMBERS = {name: getattr(signal, f"SIG{name}") for name in SIGNALS}
_NAMES = {number.value: number.name.removeprefix("SIG") for number in signal.Signals}


class Spawner:
    """Serve one box socket until it closes or the box's init (whose pidfd is `init`) ends. `pts` is an fd of its /dev/pts;
    `watcher` is told for which channel each process is, before it is started."""

    def __init__(
        self, sock: socket.socket, init: int, pts: int, title: ProcessTitle, watcher: socket.socket | None = None
    ) -> None:
        self._socket = sock
        self._init = init
        self._pts = pts
        self._title = title
        self._watcher = watcher
        self._accounts: dict[str, Account] = {}
        self._pids: dict[int, int] = {}
        self._ids: dict[int, int] = {}
        self._outbox: deque[tuple[BoxReply, list[int]]] = deque()
        self._poll = select.poll()

    def serve(self) -> None:
        """Return when the box or its socket has ended."""
        self._socket.setblocking(False)
        children, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for fd in (children, self._init, self._socket.fileno()):
            self._poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == children:
                    with suppress(BlockingIOError):
                        os.read(children, 4096)
                    self._reap()
                elif fd == self._init or not self._exchange():
                    return

    def _exchange(self) -> bool:
        """Send what waits, else take one request. False when the socket has closed."""
        if self._outbox:
            return self._flush()
        try:
            packet = self._socket.recv(MAX_MESSAGE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not packet:
            return False
        try:
            request = decode_box_request(packet)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return True
        self._handle(request)
        return True

    def _handle(self, request: Spawn | Signal | Resize) -> None:
        if isinstance(request, Spawn):
            try:
                fds = self._start(request)
            except (OSError, ValueError, UnknownUser, MemoryError) as error:
                self._say(Failed(id=request.id, error=_reason(error)))
            else:
                self._say(Spawned(id=request.id, pid=0, tty=request.terminal is not None), fds)
        elif isinstance(request, Signal):
            pid = self._pids.get(request.id)
            if pid is not None and request.signal in _NUMBERS:
                with suppress(OSError):
                    os.killpg(pid, _NUMBERS[request.signal])

    def _start(self, request: Spawn) -> list[int]:
        if request.id in self._pids:
            raise ValueError("id is in use")
        if self._watcher is not None:
            self._watcher.send(CHANNEL.pack(-1 if request.channel is None else request.channel))
        pid, fds = spawn.start(request, self._account(request.user), self._pts, self._title)
        self._pids[request.id] = pid
        self._ids[pid] = request.id
        return fds

    def _account(self, user: str) -> Account:
        """The user as first seen: sshd does not look again either, whatever a session makes of /etc/passwd."""
        account = self._accounts.get(user)
        if account is None:
            account = find(user.encode())
            if len(self._accounts) < _MAX_ACCOUNTS:
                self._accounts[user] = account
        return account

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            id_ = self._ids.pop(pid, None)
            if id_ is not None:
                del self._pids[id_]
                self._say(_exited(id_, status))

    def _say(self, reply: BoxReply, fds: list[int] | None = None) -> None:
        self._outbox.append((reply, fds or []))
        self._flush()

    def _flush(self) -> bool:
        """Send what waits, as far as the socket takes it; until then no request is taken. False when it has closed."""
        while self._outbox:
            reply, fds = self._outbox[0]
            try:
                if fds:
                    socket.send_fds(self._socket, [encode(reply)], fds, socket.MSG_NOSIGNAL)
                else:
                    self._socket.send(encode(reply), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                return False
            self._outbox.popleft()
            for fd in fds:
                os.close(fd)
        self._poll.modify(self._socket, select.POLLOUT if self._outbox else select.POLLIN)
        return True


def _exited(id_: int, status: int) -> Exited:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Exited(id=id_, signal=_NAMES.get(number, str(number)), core_dumped=os.WCOREDUMP(status))
    return Exited(id=id_, status=os.WEXITSTATUS(status))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, UnknownUser):
        return "no such user"
    return str(error) or type(error).__name__
