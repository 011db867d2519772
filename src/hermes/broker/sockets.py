"""The sockets that the launcher binds before anybody gives up power, and keeps while front after front listens on them."""

import contextlib
import errno
import os
import socket
import stat

from hermes.config.values import parse_metrics_address
from hermes.errors import MachineError


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet, set up as sshd's are: the front listens, once boxes hold."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            undo.pop_all()
            return sock
    except OSError as error:
        hint = ": is another server there? Set server.port to a free one" if error.errno == errno.EADDRINUSE else ""
        raise MachineError(f"cannot listen on {host} port {port}: {error.strerror}{hint}") from error


def bound_for_metrics(address: str) -> socket.socket | None:
    """Return a bound socket for `metrics.address`, None for `off`. A unix socket is for root and `sensor.user` alone."""
    where = parse_metrics_address(address)
    if where is None:
        return None
    try:
        return bound(*where) if isinstance(where, tuple) else _bound_path(where)
    except (OSError, MachineError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MachineError(f"metrics.address {address!r}: {reason}") from error


def give_up(sock: socket.socket) -> None:
    """Close a bound socket, and remove its path if it has one."""
    if sock.family == socket.AF_UNIX and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            os.unlink(sock.getsockname())  # noqa: PTH108
    sock.close()


def _bound_path(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):  # of a Hermes that was killed
            os.unlink(path)  # noqa: PTH108
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        undo.pop_all()
        return sock
