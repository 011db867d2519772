"""The box socket of one box, served over the exec of an OCI runtime: for gVisor, whose boxes have a kernel of their own.

`runsc exec` gets the very ends of the process's pipes, or its terminal, and hands them to the box: nothing is pumped, the process
and the front talk without anybody between. What stays on the host is the `runsc exec` that waits for the process's end.

The terminal is a pty of the host, and the exec the leader of its session: what the kernel sends there (an interrupt key, a change
of size, a hang-up) it passes on to the foreground processes in the box.
"""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
from contextlib import suppress
from typing import Self

from hermes.broker.accounts import Account, parse_groups, parse_passwd
from hermes.broker.engines import exec_scripts as scripts
from hermes.broker.engines.exec_server import MAX_EARLY, START_TIMEOUT, ExecProcess, ExecServer, Refused, one_line
from hermes.broker.oci import Runtime
from hermes.broker.policy import Policy
from hermes.broker.spawn import open_pipes, open_terminal
from hermes.container.messages import BoxReply, Exited, Spawn, Spawned
from hermes.container.packets import close_fds
from hermes.errors import EngineError

_MAX_ACCOUNTS = 32
_MAX_FILES = 2 << 20
"""Bytes of the box's passwd and group file together."""
_SETTLE = 0.5
"""Seconds in which the end of a box is noticed after the end of an exec in it."""
_SPEC_FD, _LOG_FD = 3, 4
_MAX_LOG = 4096
_STATUS = re.compile(rb"Exiting with status: (\d{1,9})\s*\Z")
_LOST = 128
"""How an exec ends that has lost its box."""
_NAMES = {number.value: number.name.removeprefix("SIG") for number in signal.Signals}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Waiter:
    """A `runsc exec` of ours, which ends when its process does. Takes over `log`, the fd of the file that it logs to."""

    def __init__(self, pid: int, log: int) -> None:
        self.pidfd = os.pidfd_open(pid)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit status, 128+n if signal n ended it."""
        self.outcome: int | None = None
        """How its process ended: the exit status, or minus the number of a signal; None if it does not know."""
        self._log = log
        asyncio.get_running_loop().add_reader(self.pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert result is not None
        os.close(self.pidfd)
        # An exit status tells no signals: 137 may be either. But it logs the wait status itself.
        text = os.pread(self._log, _MAX_LOG, max(0, os.fstat(self._log).st_size - _MAX_LOG))
        os.close(self._log)
        if (last := _STATUS.search(text)) is not None:
            self.outcome = os.waitstatus_to_exitcode(int(last[1]))
        self.ended.set_result(result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status)

    def kill(self) -> None:
        """End it now; what it waits for goes on."""
        if not self.ended.done():
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Process(ExecProcess):
    """One exec. `fds` are those its caller gets."""

    def __init__(self, spawn: Spawn, pid: int, waiter: _Waiter, fds: tuple[int, ...]) -> None:
        super().__init__(spawn.id, pid, tty=spawn.terminal is not None)
        self.waiter = waiter
        self.fds = fds


class OciExecServer(ExecServer[_Process]):
    """Serve `sock`, a `SOCK_SEQPACKET` socket it takes over, for a container of the runtime. Processes outlive its other end."""

    def __init__(self, runtime: Runtime, container_id: str, policy: Policy, sock: socket.socket) -> None:
        super().__init__(container_id, sock)
        self._runtime = runtime
        self._policy = policy
        self._known: dict[str, Account] = {}

    @classmethod
    async def enter(cls, runtime: Runtime, container_id: str, policy: Policy) -> tuple[Self, socket.socket]:
        """Return a server for a fresh box and the other end of its socket, non-blocking.

        `EngineError` if the box's programs do not run. What a first login reads is in the box's caches then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        server = cls(runtime, container_id, policy, ours)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                status, _, said = await server._output_of(scripts.READY)
                if status != 0:
                    raise EngineError(f"programs do not run in a box of {runtime.program}: {said or f'status {status}'}")
                await server._account("root")
        except (Refused, OSError, TimeoutError) as error:
            theirs.close()
            await server.close()
            raise EngineError(f"{runtime.program} exec does not work: {one_line(error)}") from error
        except BaseException:
            theirs.close()
            await server.close()
            raise
        return server, theirs

    # ---- one process

    async def _start(self, spawn: Spawn) -> _Process:
        if not scripts.may_exist(spawn.user):
            raise Refused("no such user")
        account = await self._account(spawn.user)
        token = secrets.token_hex(8)
        command = scripts.login(spawn, token, size=False)
        if spawn.terminal is None:
            ours, theirs, tty = open_pipes()
        else:
            ours, theirs, tty = _host_terminal(spawn)
        try:
            waiter = self._exec(command, account, theirs, tty)
        except BaseException:
            close_fds(ours)
            raise
        finally:
            close_fds(sorted(set(theirs)))
        try:
            output = ours[0] if tty else ours[1]
            os.set_blocking(output, False)
            line = await _read_until(output, b"\n", _MAX_LINE)
            greeting = scripts.greeting(line, token)
            if greeting is None:
                said = (
                    line
                    + await _read_until(output, b"", MAX_EARLY)
                    + (b"" if tty else await _read_until(ours[2], b"", MAX_EARLY))
                )
                raise Refused(said.decode(errors="replace").strip() or "it ended at once")
        except BaseException:
            waiter.kill()
            close_fds(ours)
            raise
        return _Process(spawn, greeting.pid, waiter, tuple(ours))

    async def _see_through(self, process: _Process) -> BoxReply:
        try:
            self._processes[process.id] = process
            self._say(Spawned(id=process.id, pid=process.pid, tty=process.tty), process.fds)
            control = self._tasks.spawn(self._control(process), name=f"control {process.id}")
            try:
                status = await asyncio.shield(process.waiter.ended)
            finally:
                control.cancel()
        except BaseException:
            process.waiter.kill()
            raise
        if (outcome := process.waiter.outcome) is not None:
            if outcome >= 0:
                return Exited(id=process.id, status=outcome)
            return Exited(id=process.id, signal=_NAMES.get(-outcome, str(-outcome)))
        if status == _LOST:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE):
                    await self._gone.wait()
        if self._gone.is_set():
            return Exited(id=process.id, signal="KILL")
        return self._exit(process, status)

    async def _resize(self, process: _Process, rows: int, columns: int) -> None:
        """Its terminal is a real pty, whose size the other end sets."""

    async def _run_as_root(self, command: list[str]) -> None:
        await self._output_of(command)

    # ---- accounts

    async def _account(self, user: str) -> Account:
        """The user as first seen; made if there is none. Refused if there cannot be one."""
        if (known := self._known.get(user)) is not None:
            return known
        account = await self._look_up(user)
        if account is None:
            await self._make_account(user)
            account = await self._look_up(user)
        if account is None:
            raise Refused("no such user")
        if len(self._known) < _MAX_ACCOUNTS:
            self._known[user] = account
        return account

    async def _look_up(self, user: str) -> Account | None:
        _, files, _ = await self._output_of(scripts.ACCOUNTS)
        passwd, _, group = files.partition(b"\0")
        account = parse_passwd(passwd, user.encode())
        if account is not None:
            parse_groups(group, account)
        return account

    # ---- the runtime

    async def _output_of(self, command: list[str]) -> tuple[int, bytes, str]:
        """Run a command as root, without input: its exit status, what it wrote (bounded), and its first line of complaint."""
        ours, theirs, _ = open_pipes()
        try:
            try:
                waiter = self._exec(command, Account(b"root", 0, 0, b"/", b""), theirs, b"")
            finally:
                close_fds(theirs)
            try:
                for fd in ours[1:]:
                    os.set_blocking(fd, False)
                output = await _read_until(ours[1], b"", _MAX_FILES)
                said = await _read_until(ours[2], b"", MAX_EARLY)
                status = await asyncio.shield(waiter.ended)
            finally:
                waiter.kill()
        finally:
            close_fds(ours)
        return status, output, said.decode(errors="replace").strip().partition("\n")[0]

    def _exec(self, command: list[str], account: Account, fds: list[int], tty: bytes) -> _Waiter:
        """Start an exec of `command` with these as its stdin, stdout and stderr; `tty` is the path of their terminal."""
        spec = os.memfd_create("process", os.MFD_CLOEXEC)
        log = os.memfd_create("log", os.MFD_CLOEXEC)
        try:
            with open(spec, "w", closefd=False) as file:
                json.dump(self._process(command, account, terminal=bool(tty)), file)
            actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)]
            if tty:
                # A session without a terminal that opens one makes it its own.
                actions = [(os.POSIX_SPAWN_OPEN, 0, tty, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
            actions += [(os.POSIX_SPAWN_DUP2, spec, _SPEC_FD), (os.POSIX_SPAWN_DUP2, log, _LOG_FD)]
            program = self._runtime.program
            options = (*self._runtime.arguments, f"--debug-log=/proc/self/fd/{_LOG_FD}")
            argv = (program, *options, "exec", "--process", f"/proc/self/fd/{_SPEC_FD}", self._name)
            pid = os.posix_spawn(
                program, argv, {}, file_actions=actions, setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGINT)
            )
        except BaseException:
            os.close(log)
            raise
        finally:
            os.close(spec)
        return _Waiter(pid, log)

    def _process(self, command: list[str], account: Account, *, terminal: bool) -> dict[str, object]:
        """OCI's `process` object."""
        kept = self._policy.capabilities
        effective = kept if account.uid == 0 else []
        return {
            "terminal": terminal,
            "user": {"uid": account.uid, "gid": account.gid, "additionalGids": account.groups},
            "args": command,
            "env": [_PATH],
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": effective, "permitted": effective},
            "rlimits": [{"type": name, "soft": value, "hard": value} for name, value in self._policy.rlimits.items()],
            "noNewPrivileges": self._policy.security.no_new_privileges,
        }


_MAX_LINE = 128


def _host_terminal(spawn: Spawn) -> tuple[list[int], list[int], bytes]:
    assert spawn.terminal is not None
    owner = Account(b"root", 0, 0, b"/", b"")
    owner.tty_gid = 0
    pts = os.open("/dev/pts", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_terminal(spawn.terminal, owner, pts)
    finally:
        os.close(pts)


async def _read_until(fd: int, end: bytes, most: int) -> bytes:
    """Read from a non-blocking fd up to and with `end`, not a byte further; if that is empty, all. At most `most` bytes."""
    loop = asyncio.get_running_loop()
    seen = bytearray()
    while len(seen) < most and not (end and seen.endswith(end)):
        try:
            data = os.read(fd, 1 if end else most - len(seen))
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
        except OSError:  # a terminal that nobody has open any more
            break
        else:
            if not data:
                break
            seen += data
    return bytes(seen)
