"""What becomes of a call that names an address: foretold, from the box's own network, before the call goes on.

Nothing is done for the process, nor with its socket: to hold it, even for a moment, would let an attacker have the watcher be the
last to close it, which can take as long as the attacker likes. Instead sockets of our own in the box's network ask the
kernel for the way (a UDP connect sends nothing), and its tables in /proc tell who listens. In a network without a way out that is
the whole truth but for races; with one, a connection that leaves the box is `pending`.
"""

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from hermes.broker.watcher.kernel import disconnect, text
from hermes.broker.watcher.lookup import Lookup
from hermes.events import from_bytes

MAX_ADDRESS = 128
"""Bytes of a socket address that are read: `struct sockaddr_storage`."""
MAX_TABLE = 256 * 1024
"""Bytes read of a table of sockets."""
_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNIX: "unix", socket.AF_NETLINK: "netlink"}
_PROTOCOLS = {"UNIX": "dgram", "UNIX-STREAM": "stream"}
_LISTENING, _ACCEPTING = "0A", 0x10000
_ANY = ("0.0.0.0", "::")


class Target(NamedTuple):
    """An address, as text, and what it is."""

    family: str
    address: str
    port: int
    raw: bytes


def target(raw: bytes) -> Target | None:
    """What a socket address says; None for one that names nobody (AF_UNSPEC, or none at all)."""
    if len(raw) < 2:
        return None
    (family,) = struct.unpack_from("=H", raw)
    if family == 0:
        return None
    name = _FAMILIES.get(family, str(family))
    if family == socket.AF_INET and len(raw) >= 8:
        return Target(name, socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big"), raw)
    if family == socket.AF_INET6 and len(raw) >= 24:
        return Target(name, socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big"), raw)
    if family == socket.AF_UNIX:
        path = raw[2:]
        shown = b"@" + path[1:] if path.startswith(b"\0") else path.partition(b"\0")[0]
        return Target(name, from_bytes(shown), 0, raw)
    if family == socket.AF_NETLINK and len(raw) >= 12:
        return Target(name, str(struct.unpack_from("=I", raw, 4)[0]), 0, raw)
    return Target(name, raw[2:].hex(), 0, raw)


def protocol_of(tid: int, fd: int) -> tuple[str, str | None]:
    """The protocol of a thread's socket (`tcp`, `udp`, `raw`, `stream`, …), and why it cannot be used, if it cannot."""
    try:
        name = os.getxattr(f"/proc/{tid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")
    except FileNotFoundError:
        return "", "EBADF"
    except OSError:
        return "", "ENOTSOCK"
    return _PROTOCOLS.get(name, name.removesuffix("v6").lower()), None


class Network:
    """The network of the box whose init is `init` (a pid of ours). Make it in that network: its sockets are of that network."""

    def __init__(self, init: int, lookup: Lookup) -> None:
        self._init = init
        self._lookup = lookup
        self._probes: dict[str, socket.socket] = {}
        for name, family in (("inet", socket.AF_INET), ("inet6", socket.AF_INET6)):
            with suppress(OSError):  # there is no IPv6
                self._probes[name] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._privileged = int(text("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
        except (OSError, ValueError):
            self._privileged = 1024

    def foretell(self, call: str, protocol: str, to: Target, *, cwd: bytes, root: bool) -> str:
        """The outcome of `call`, as `events.NetworkAttempted` names it. `root`: the process may take any port."""
        if to.family == "unix":
            return self._unix(call, to, cwd)
        if to.family not in self._probes:
            return "unknown" if to.family != "netlink" else {"connect": "connected", "bind": "bound"}.get(call, "sent")
        if call == "bind":
            return self._bind(protocol, to, root=root)
        error, local = self._way(to)
        if error is not None:
            return error
        if call != "connect":
            return "sent"
        if protocol != "tcp":
            return "connected"
        if not local:
            return "pending"
        return "connected" if self._is_listening(to) else "ECONNREFUSED"

    def _way(self, to: Target) -> tuple[str | None, bool]:
        """Why nothing can be sent there, or None; and whether it is an address of the box's own."""
        probe = self._probes[to.family]
        try:
            probe.connect(_host(to))
            return None, to.address in (probe.getsockname()[0], *_ANY) or to.address.startswith("127.")
        except OSError as error:
            return _name(error), False
        finally:
            with suppress(OSError):  # nobody in the box is to see it in a table for longer than this
                disconnect(probe.fileno())

    def _bind(self, protocol: str, to: Target, *, root: bool) -> str:
        if protocol not in ("tcp", "udp"):
            return "bound"
        if to.port and to.port < self._privileged and not root:
            return "EACCES"
        if to.port and self._is_taken(protocol, to):
            return "EADDRINUSE"
        return "bound" if to.address in _ANY or self._way(to)[1] else "EADDRNOTAVAIL"

    def _is_listening(self, to: Target) -> bool:
        return any(
            state == _LISTENING and port == to.port and (address in (to.address, *_ANY) or to.address in _ANY)
            for address, port, state in self._table("tcp")
        )

    def _is_taken(self, protocol: str, to: Target) -> bool:
        """Whether another socket is bound there, so that most could not be."""
        return any(
            port == to.port
            and (state == _LISTENING or protocol == "udp")
            and (address == to.address or address in _ANY or to.address in _ANY)
            for address, port, state in self._table(protocol)
        )

    def _table(self, protocol: str) -> list[tuple[str, int, str]]:
        """Local address, port and state of the box's sockets; those that listen come first, and there may be more."""
        found = []
        for name in (protocol, f"{protocol}6"):
            with suppress(OSError):
                for line in _table(f"/proc/{self._init}/net/{name}")[1:]:
                    fields = line.split(None, 4)
                    if len(fields) > 4:
                        address, _, port = fields[1].partition(b":")
                        found.append((_address(address), int(port, 16), fields[3].decode()))
        return found

    def _unix(self, call: str, to: Target, cwd: bytes) -> str:
        if call == "bind":
            return "EADDRINUSE" if self._lookup.exists(_path(to), cwd) is not None else "bound"
        path = _path(to)
        success = "connected" if call == "connect" else "sent"
        if path and self._lookup.exists(path, cwd) is None:
            return "ENOENT"
        with suppress(OSError):
            shown = path or b"@" + to.raw[3:]
            for line in _table(f"/proc/{self._init}/net/unix")[1:]:
                fields = line.split(None, 7)
                if len(fields) == 8 and fields[7] == shown and (int(fields[3], 16) & _ACCEPTING or fields[4] == b"0002"):
                    return success
            return "ECONNREFUSED"
        return "unknown"


def _host(to: Target) -> tuple[str, int]:
    return to.address, to.port or 9


def _path(to: Target) -> bytes:
    """The path of a unix socket; empty for an abstract one."""
    path = to.raw[2:]
    return b"" if path.startswith(b"\0") else path.partition(b"\0")[0]


def _table(path: str) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = bytearray()
        while len(data) < MAX_TABLE and (piece := os.read(fd, 65536)):
            data += piece
        return bytes(data).splitlines()
    finally:
        os.close(fd)


def _address(text: bytes) -> str:
    """An address as /proc/net/tcp shows it: words in the machine's order."""
    words = [bytes.fromhex(text[at : at + 8].decode())[::-1] for at in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")
