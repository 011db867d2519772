"""How the spawner starts one process: terminal or pipes, the user's identity and surroundings, then posix_spawn.

posix_spawn (a vfork inside libc) takes a fraction of the time of fork in Python, and no code of ours runs in the child: the
spawner takes on the user's identity itself for that moment. The new session opens its terminal first, which makes that its
controlling one. An attacker who stops the child before it executes stops the spawner of this one box, and nobody else's.
"""

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from hermes.broker import linux, termmodes
from hermes.broker.accounts import Account
from hermes.container.messages import Spawn, Terminal

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441
_PIPE_SIZE = 1 << 20
_ROOT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = b"/usr/local/bin:/usr/bin:/bin:/usr/games"
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD)
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR)


def start(request: Spawn, account: Account, pts: int, title: linux.ProcessTitle) -> tuple[int, list[int]]:
    """Start what is asked for, as `account`. Return its pid and the fds its caller gets (see `Spawned`).

    `OSError` or `ValueError` when the kernel or the request will not have it; then nothing is left open.
    """
    ours, theirs, tty = open_terminal(request.terminal, account, pts) if request.terminal else open_pipes()
    try:
        title.set(b"sshd: %s@%s" % (account.name, tty.removeprefix(b"/dev/") or b"notty"))
        with _acting_as(account):
            _change_directory(account, request.cwd, theirs[2])
            return _execute(request, account, theirs, tty), ours
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)


def _close(fds: Iterable[int]) -> None:
    for fd in set(fds):
        os.close(fd)


def open_terminal(terminal: Terminal, account: Account, pts: int) -> tuple[list[int], list[int], bytes]:
    """Open a pty of the devpts that `pts` is an fd of: the fds its caller gets, those the process gets, and its path there."""
    master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=pts)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        number = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, b"\0" * 4))[0]
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        raise
    try:
        # As sshd: the group `tty` may write to it, or everyone where there is no such group.
        os.fchown(slave, account.uid, account.gid if account.tty_gid is None else account.tty_gid)
        os.fchmod(slave, 0o622 if account.tty_gid is None else 0o620)
        sizes = (terminal.height, terminal.width, terminal.pixel_width, terminal.pixel_height)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *(min(max(size, 0), 0xFFFF) for size in sizes)))
        termmodes.apply(slave, terminal.modes)
    except (OSError, termios.error) as error:
        _close((master, slave))
        raise OSError(error.args[0], "terminal") from error
    return [master], [slave] * 3, b"/dev/pts/%d" % number


def open_pipes() -> tuple[list[int], list[int], bytes]:
    """Open three pipes: the ends their caller gets (stdin's to write, stdout's and stderr's to read), the process's, no path."""
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe2(os.O_CLOEXEC)
    except OSError:
        _close(opened)
        raise
    stdin, ours_in, ours_out, stdout, ours_err, stderr = opened
    for pipe in (ours_in, ours_out):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return [ours_in, ours_out, ours_err], [stdin, stdout, stderr], b""


@contextmanager
def _acting_as(account: Account) -> Iterator[None]:
    """Be the user for a moment: what is executed meanwhile is the user's for good, without a way back."""
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, 0)
        os.setresuid(account.uid, account.uid, 0)
        yield
    finally:
        _act_as_root()


def _act_as_root() -> None:
    try:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])
        os.chdir("/")
        linux.set_undumpable()
        linux.set_parent_death_signal(signal.SIGKILL)
    except OSError:
        os._exit(1)


def _change_directory(account: Account, cwd: bytes | None, stderr: int) -> None:
    try:
        os.chdir(account.home if cwd is None else cwd)
    except (OSError, ValueError) as error:
        if cwd is None and isinstance(error, OSError):
            reason = os.strerror(error.errno or errno.EIO).encode()
            os.write(stderr, b"Could not chdir to home directory %s: %s\n" % (account.home, reason))


def _environment(request: Spawn, account: Account, tty: bytes) -> dict[bytes, bytes]:
    environment = {
        b"USER": account.name,
        b"LOGNAME": account.name,
        b"HOME": account.home,
        b"PATH": _USER_PATH if account.uid else _ROOT_PATH,
        b"SHELL": account.shell,
        b"MAIL": b"/var/mail/" + account.name,
    }
    if request.terminal:
        environment[b"TERM"] = request.terminal.term.encode(errors="surrogateescape")
        environment[b"SSH_TTY"] = tty
    return environment | request.env


def _execute(request: Spawn, account: Account, fds: list[int], tty: bytes) -> int:
    environment = _environment(request, account, tty)
    actions: list[tuple[object, ...]]
    if tty:
        actions = [(os.POSIX_SPAWN_OPEN, 0, tty, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    else:
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)]
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for program, argv in _command_lines(request, account, environment):
        try:
            return os.posix_spawn(
                program, argv, environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
            )
        except OSError as problem:
            if problem.errno not in _NOT_HERE or error.errno in _NOT_HERE:
                error = problem
            if problem.errno not in (*_NOT_HERE, errno.EACCES):
                break
    raise error


def _command_lines(
    request: Spawn, account: Account, environment: dict[bytes, bytes]
) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    """What to execute, in turn until one can be: program and argv."""
    if request.argv:
        name = request.argv[0]
        if b"/" in name:
            yield name, request.argv
            return
        for directory in environment.get(b"PATH", b"").split(b":"):
            program = (directory or b".") + b"/" + name
            if os.access(program, os.F_OK):
                yield program, request.argv
        return
    name = account.shell.rpartition(b"/")[2]
    yield account.shell, (b"-" + name,) if request.command is None else (name, b"-c", request.command)
