"""The zygote's own process: small, single-threaded, and ready to fork. Started by `zygote_main`.

For each box it is told of it forks a watcher (`Watch`) and a spawner (`EnterBox`); it also makes user namespaces
(`MakeUserNamespace`). Each request brings a socket along; whoever answers, answers there: the zygote itself never waits for
anyone. When its control socket closes it ends, and its spawners with it.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import msgspec

from hermes.broker import cgroups, linux
from hermes.broker.confinement import Confinement
from hermes.broker.entry import Refused, enter
from hermes.broker.spawner import Spawner
from hermes.broker.watcher import process as watching
from hermes.broker.watcher.process import Watch

READY = b"ready"
MAX_REQUEST = 128 * 1024


class EnterBox(msgspec.Struct, frozen=True, tag=True):
    """Fork a spawner into the container whose init is `pid`. Brings along its pidfd, the socket to its watcher if it is watched,
    and the spawner's end of the box socket, over which comes `READY`, or one line that says what went wrong, and the end."""

    pid: int
    confinement: Confinement


class MakeUserNamespace(msgspec.Struct, frozen=True, tag=True):
    """Make a user namespace that maps `size` ids from 0 to `base`. Brings along a socket, over which its fd comes back."""

    base: int
    size: int


Request: TypeAlias = EnterBox | Watch | MakeUserNamespace
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Request).decode


def _run_spawner(request: EnterBox, fds: list[int], sock: socket.socket, trees: list[cgroups.Hierarchy], zygote: int) -> None:
    pidfd = fds[0]
    watcher = socket.socket(fileno=fds[1]) if len(fds) > 1 else None
    title = linux.ProcessTitle()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    try:
        linux.set_name(b"sshd")
        title.set(b"sshd: root [priv]")
        pts = enter(request.pid, pidfd, request.confinement, trees, zygote, watcher)
    except (OSError, ValueError, Refused) as error:
        sock.send(str(error).encode(errors="backslashreplace")[:1024], socket.MSG_NOSIGNAL)
        return
    sock.send(READY, socket.MSG_NOSIGNAL)
    Spawner(sock, pidfd, pts, title, watcher).serve()


def _run_watcher(request: Watch, fds: list[int], sock: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    linux.ProcessTitle().set(b"hermes-watcher %s" % request.container_id.encode())
    pidfd, spool, news, spawner = fds
    try:
        watching.run(request, pidfd, spool, news, socket.socket(fileno=spawner), sock)
    except OSError as error:
        print(f"watcher of {request.container_id}: {error}", file=sys.stderr, flush=True)


def _make_user_namespace(request: MakeUserNamespace, sock: socket.socket) -> None:
    ready, is_ready = os.pipe()
    release, is_released = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(is_released)
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(is_ready, b".")
            os.read(release, 1)
        finally:
            os._exit(0)
    for fd in (is_ready, release):
        os.close(fd)
    try:
        if not os.read(ready, 1):
            raise OSError("user namespaces are switched off (sysctl user.max_user_namespaces)")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {request.base} {request.size}\n")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(sock, [READY], [namespace], socket.MSG_NOSIGNAL)
        finally:
            os.close(namespace)
    finally:
        os.close(ready)
        os.close(is_released)


def _answer(request: Request, fds: list[int], control: socket.socket, trees: list[cgroups.Hierarchy]) -> None:
    with socket.socket(fileno=fds.pop()) as sock:
        if isinstance(request, MakeUserNamespace):
            _make_user_namespace(request, sock)
            return
        zygote = os.getpid()
        if os.fork() == 0:
            try:
                control.close()
                if isinstance(request, Watch):
                    _run_watcher(request, fds, sock)
                else:
                    _run_spawner(request, fds, sock, trees, zygote)
            finally:
                os._exit(0)


def main(control: socket.socket) -> None:
    """Serve until `control` closes."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    linux.set_subreaper()
    linux.set_name(b"hermes-zygote")
    trees = cgroups.hierarchies()
    sys.path.clear()
    sys.meta_path.clear()
    gc.collect()
    gc.freeze()
    gc.disable()
    with suppress(ConnectionError):  # the broker is gone, and this process's work with it
        control.send(READY)
        _serve(control, trees)


def _serve(control: socket.socket, trees: list[cgroups.Hierarchy]) -> None:
    while True:
        packet, fds = linux.receive_fds(control, MAX_REQUEST, 8)
        if not packet:
            return
        try:
            _answer(decode(packet), fds, control, trees)
        except (OSError, msgspec.MsgspecError) as error:
            print(f"zygote: {error}", file=sys.stderr, flush=True)
        finally:
            for fd in fds:
                os.close(fd)


def start(control: int) -> None:
    """Serve the control socket whose fd is `control`."""
    main(socket.socket(fileno=control))
