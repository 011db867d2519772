"""The spawner: stands in one box's namespaces with no power of its own, and starts processes there when the box socket asks.

Runs in a process that the zygote forked (`zygote_process`), single-threaded, without asyncio, so that it is small and may
fork. Whatever it reads in the box is hostile; nothing it waits for can be held up by what runs in the box, because every
wait is one poll. Nothing is imported after the box has been entered: that would look in the attacker's files.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections import deque
from contextlib import suppress

import msgspec

from hermes.broker import accounts, termmodes
from hermes.broker.linux import ProcessTitle
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
    Terminal,
    decode_box_request,
    encode,
)

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441
_PIPE_SIZE = 1 << 20
_MAX_FD = 1 << 20
_MAX_ACCOUNTS = 32
_MAX_STARTING = 32
_ROOT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = b"/usr/local/bin:/usr/bin:/bin:/usr/games"
_NUMBERS = {name: getattr(signal, f"SIG{name}") for name in SIGNALS}
_NAMES = {number.value: number.name.removeprefix("SIG") for number in signal.Signals}


class _Process:
    """One process asked for. Until `status` (the read end of a pipe that closes on exec) ends, it is being started."""

    __slots__ = ("fds", "id", "pid", "report", "status", "tty")

    def __init__(self, id_: int, pid: int, status: int, fds: list[int], tty: bool) -> None:
        self.id = id_
        self.pid = pid
        self.status: int | None = status
        self.report = b""
        self.fds = fds
        self.tty = tty


class Spawner:
    """Serve one box socket until it closes or the box's init (whose pidfd is `init`) ends."""

    def __init__(self, sock: socket.socket, init: int, pts: int, title: ProcessTitle) -> None:
        self._socket = sock
        self._init = init
        self._pts = pts
        self._title = title
        self._accounts: dict[str, accounts.Account] = {}
        self._processes: dict[int, _Process] = {}
        self._by_pid: dict[int, _Process] = {}
        self._starting: dict[int, _Process] = {}
        self._outbox: deque[tuple[BoxReply, list[int]]] = deque()
        self._poll = select.poll()

    def serve(self) -> None:
        """Return when the box or its socket has ended."""
        self._socket.setblocking(False)
        children, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(children, select.POLLIN)
        self._poll.register(self._init, select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._starting:
                    self._progress(self._starting[fd])
                elif fd == children:
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
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not packet:
            return False
        try:
            request = decode_box_request(packet)
        except msgspec.MsgspecError:
            return True
        self._handle(request)
        return True

    def _handle(self, request: Spawn | Signal | Resize) -> None:
        if isinstance(request, Spawn):
            try:
                self._start(request)
            except (OSError, ValueError, accounts.UnknownUser, MemoryError) as error:
                self._say(Failed(id=request.id, error=_reason(error)))
        elif isinstance(request, Signal):
            process = self._processes.get(request.id)
            if process is not None and process.status is None and request.signal in _NUMBERS:
                with suppress(OSError):
                    os.killpg(process.pid, _NUMBERS[request.signal])

    def _start(self, request: Spawn) -> None:
        if request.id in self._processes:
            raise ValueError("id is in use")
        if len(self._starting) >= _MAX_STARTING:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        account = self._account(request.user)
        opened: list[int] = []
        try:
            ours, theirs = self._open_terminal(opened) if request.terminal else _open_pipes(opened)
            status, report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            opened += (status, report)
            pid = os.fork()
            if pid == 0:
                try:
                    _Child(request, account, theirs, report, self._title).run()
                finally:
                    os._exit(127)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        for fd in (report, *theirs):
            if fd not in ours:
                os.close(fd)
        process = _Process(request.id, pid, status, ours, request.terminal is not None)
        self._processes[request.id] = self._by_pid[pid] = self._starting[status] = process
        self._poll.register(status, select.POLLIN)

    def _account(self, user: str) -> accounts.Account:
        account = self._accounts.get(user)
        if account is None:
            account = accounts.find(user.encode())
            if len(self._accounts) < _MAX_ACCOUNTS:
                self._accounts[user] = account
        return account

    def _open_terminal(self, opened: list[int]) -> tuple[list[int], list[int]]:
        master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._pts)
        opened.append(master)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        return [master], [master]

    def _progress(self, process: _Process) -> None:
        """Read what the child reports before its exec: its pid in the box, then nothing more, or an error."""
        assert process.status is not None
        try:
            while chunk := os.read(process.status, 4096):
                process.report += chunk
        except BlockingIOError:
            return
        self._poll.unregister(process.status)
        del self._starting[process.status]
        os.close(process.status)
        process.status = None
        pid, _, error = process.report.partition(b"\n")
        fds, process.fds = process.fds, []
        if pid and not error:
            self._say(Spawned(id=process.id, pid=int(pid), tty=process.tty), fds)
            return
        for fd in fds:
            os.close(fd)
        del self._processes[process.id]
        self._say(Failed(id=process.id, error=error.decode(errors="backslashreplace") or "killed before it could start"))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._by_pid.pop(pid, None)
            if process is None:
                continue
            if process.status is not None:
                self._progress(process)
            if self._processes.get(process.id) is process:
                del self._processes[process.id]
                self._say(_exited(process.id, status))

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
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                return False
            self._outbox.popleft()
            for fd in fds:
                os.close(fd)
        self._poll.modify(self._socket, select.POLLOUT if self._outbox else select.POLLIN)
        return True


class _Child:
    """The forked process between fork and exec. Nothing it does may return."""

    def __init__(self, request: Spawn, account: accounts.Account, fds: list[int], report: int, title: ProcessTitle) -> None:
        self._request = request
        self._account = account
        self._fds = fds
        self._report = report
        self._title = title

    def run(self) -> None:
        """Become what was asked for, or say why not, and end."""
        try:
            os.write(self._report, b"%d\n" % os.getpid())
            self._become()
        except OSError as problem:
            self._fail(os.strerror(problem.errno).encode() if problem.errno else b"failed")
        except BaseException as problem:  # noqa: BLE001
            self._fail(str(problem).encode(errors="backslashreplace") or type(problem).__name__.encode())

    def _fail(self, error: bytes) -> None:
        os.write(self._report, error[:1024])
        os._exit(127)

    def _become(self) -> None:
        account, request = self._account, self._request
        os.setsid()
        tty = self._take_terminal(request.terminal) if request.terminal else None
        self._title.set(b"sshd: %s@%s" % (account.name, tty.removeprefix(b"/dev/") if tty else b"notty"))
        for target, fd in enumerate(self._fds):
            os.dup2(fd, target)
        os.closerange(3, self._report)
        os.closerange(self._report + 1, _MAX_FD)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        self._change_directory()
        environment = self._environment(tty)
        program, argv = self._command_line()
        if request.argv and b"/" not in program:
            _search(program, argv, environment)
        os.execve(program, argv, environment)

    def _take_terminal(self, terminal: Terminal) -> bytes:
        (master,) = self._fds
        number = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, b"\0" * 4))[0]
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        account = self._account
        os.fchown(slave, account.uid, account.gid if account.tty_gid is None else account.tty_gid)
        os.fchmod(slave, 0o622 if account.tty_gid is None else 0o620)
        sizes = (terminal.height, terminal.width, terminal.pixel_width, terminal.pixel_height)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *(min(max(size, 0), 0xFFFF) for size in sizes)))
        termmodes.apply(slave, terminal.modes)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        self._fds = [slave] * 3
        return b"/dev/pts/%d" % number

    def _change_directory(self) -> None:
        home = self._account.home if self._request.cwd is None else self._request.cwd
        try:
            os.chdir(home)
        except (OSError, ValueError) as error:
            os.chdir("/")
            if self._request.cwd is None and isinstance(error, OSError):
                reason = os.strerror(error.errno or 0).encode()
                os.write(2, b"Could not chdir to home directory %s: %s\n" % (home, reason))

    def _environment(self, tty: bytes | None) -> dict[bytes, bytes]:
        account = self._account
        environment = {
            b"USER": account.name,
            b"LOGNAME": account.name,
            b"HOME": account.home,
            b"PATH": _USER_PATH if account.uid else _ROOT_PATH,
            b"SHELL": account.shell,
            b"MAIL": b"/var/mail/" + account.name,
        }
        if tty and self._request.terminal:
            environment[b"TERM"] = self._request.terminal.term.encode(errors="surrogateescape")
            environment[b"SSH_TTY"] = tty
        return environment | self._request.env

    def _command_line(self) -> tuple[bytes, list[bytes]]:
        if self._request.argv:
            return self._request.argv[0], list(self._request.argv)
        shell = self._account.shell
        name = shell.rpartition(b"/")[2]
        if self._request.command is None:
            return shell, [b"-" + name]
        return shell, [name, b"-c", self._request.command]


def _open_pipes(opened: list[int]) -> tuple[list[int], list[int]]:
    stdin, ours_in = os.pipe2(os.O_CLOEXEC)
    opened += (stdin, ours_in)
    ours_out, stdout = os.pipe2(os.O_CLOEXEC)
    opened += (ours_out, stdout)
    ours_err, stderr = os.pipe2(os.O_CLOEXEC)
    opened += (ours_err, stderr)
    for pipe in (ours_in, ours_out):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return [ours_in, ours_out, ours_err], [stdin, stdout, stderr]


def _search(name: bytes, argv: list[bytes], environment: dict[bytes, bytes]) -> None:
    """Execute the first program of that name in PATH; `OSError` if there is none."""
    error = errno.ENOENT
    for directory in environment.get(b"PATH", b"").split(b":"):
        try:
            os.execve((directory or b".") + b"/" + name, argv, environment)
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.ENOTDIR):
                error = problem.errno or error
    raise OSError(error, os.strerror(error))


def _exited(id_: int, status: int) -> Exited:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Exited(id=id_, signal=_NAMES.get(number, str(number)), core_dumped=os.WCOREDUMP(status))
    return Exited(id=id_, status=os.WEXITSTATUS(status))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, accounts.UnknownUser):
        return "no such user"
    return str(error) or type(error).__name__
