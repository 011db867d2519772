"""The yardstick: a tuned asyncssh server with local processes, no recording, no journal, no box.

    python -m bench.plain_server PORT HOME

Shell: `bash -l` on a pty; exec: `sh -c`. User `root`, password `root`; HOME is the processes' home. Listens on 127.0.0.1 only.
What it costs above this, Hermes costs for its evidence and its boxes.
"""

import asyncio
import fcntl
import gc
import logging
import os
import signal
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import asyncssh

CHUNK = 64 * 1024


class Server(asyncssh.SSHServer):
    """Lets in root with the password root."""

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("root", "root")


class Connection(asyncssh.SSHServerConnection):
    """As asyncssh's own, but options are not built anew in a thread for every login."""

    async def reload_config(self) -> None:
        return None


def spawn(argv: list[str], env: dict[str, str], stdin: int, stdout: int, stderr: int, terminal: str | None) -> int:
    """Start a process in a session of its own; a `terminal` becomes its stdin, stdout, stderr and controlling terminal."""
    if terminal is not None:
        files: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
        files += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    else:
        files = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))]
    return os.posix_spawn(
        "/bin/bash" if "bash" in argv[0] else "/bin/sh", argv, env, file_actions=files, setsid=True, setsigdef=[signal.SIGPIPE]
    )


async def ended(pid: int) -> int:
    """Wait for a child's end without a thread; its exit status, negative for a signal."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)
    done = loop.create_future()
    loop.add_reader(pidfd, done.set_result, None)
    try:
        await done
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 (it has ended)


class Handler:
    """Runs one channel's process."""

    def __init__(self, home: Path) -> None:
        self._env = {"HOME": str(home), "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
        self._env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    async def __call__(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        argv = ["-bash"] if process.command is None else ["sh", "-c", process.command]
        term = process.get_terminal_type()
        if term is not None:
            master, slave = os.openpty()
            columns, rows, *_ = process.get_terminal_size()
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            pid = spawn(argv, {**self._env, "TERM": term}, -1, -1, -1, os.ttyname(slave))
            os.close(slave)
            await process.redirect(stdin=os.dup(master), stdout=master, bufsize=CHUNK)
        else:
            (out_read, out_write), (error_read, error_write), (in_read, in_write) = os.pipe(), os.pipe(), os.pipe()
            pid = spawn(argv, self._env, in_read, out_write, error_write, None)
            for fd in (in_read, out_write, error_write):
                os.close(fd)
            await process.redirect(stdin=in_write, stdout=out_read, stderr=error_read, bufsize=CHUNK)
        # A client that leaves takes the terminal or the pipes with it, and so ends the process.
        code = await ended(pid)
        await process.stdout.drain()
        process.exit(code if code >= 0 else 128 - code)


async def serve(port: int, home: Path) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519")]
    options = asyncssh.SSHServerConnectionOptions(
        server_factory=Server,
        process_factory=Handler(home),
        server_host_keys=keys,
        encoding=None,
        line_editor=False,
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        x11_forwarding=False,
        agent_forwarding=False,
        kex_algs=["curve25519-sha256"],
        encryption_algs=["aes128-gcm@openssh.com"],
        compression_algs=["none"],
        login_timeout=0,
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def factory() -> asyncssh.SSHServerConnection:
        return Connection(loop, options)

    server = await loop.create_server(factory, "127.0.0.1", port, backlog=1000)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    print("listening", flush=True)
    async with server:
        await stop.wait()


def main() -> None:
    os.chdir(sys.argv[2])
    asyncssh.set_log_level(logging.CRITICAL)
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))


if __name__ == "__main__":
    main()
