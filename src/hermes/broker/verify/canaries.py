"""Canaries: sockets and a file of the host's that no box may reach. Whoever does leaves a token there.

They hold no secret, and are open to everyone on the machine: only the walls of the box keep its attacker from them.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_PREFIX = "hermes-verify-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_YOUNG = 60.0
"""Seconds for which a directory without a lock may just have been made."""
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


@dataclass(frozen=True, slots=True)
class Canary:
    """A socket of the host's and how to reach it."""

    name: str
    family: socket.AddressFamily
    kind: socket.SocketKind
    address: str
    """As it would be connected to: an IP address, an abstract name (without NUL) or a path."""
    port: int
    sock: socket.socket

    @property
    def sockaddr(self) -> bytes:
        """The address as the kernel takes it."""
        if self.family == socket.AF_INET:
            return sockaddr_in(self.address, self.port)
        if self.family == socket.AF_INET6:
            return sockaddr_in6(self.address, self.port)
        name = b"\0" + self.address.encode() if self.port < 0 else os.fsencode(self.address) + b"\0"
        return int(self.family).to_bytes(2, "little") + name


def sockaddr_in(address: str, port: int) -> bytes:
    """A `struct sockaddr_in`."""
    family = int(socket.AF_INET).to_bytes(2, "little")
    return family + port.to_bytes(2, "big") + socket.inet_pton(socket.AF_INET, address) + bytes(8)


def sockaddr_in6(address: str, port: int) -> bytes:
    """A `struct sockaddr_in6`."""
    family = int(socket.AF_INET6).to_bytes(2, "little")
    return family + port.to_bytes(2, "big") + bytes(4) + socket.inet_pton(socket.AF_INET6, address) + bytes(4)


@dataclass(slots=True)
class Canaries:
    """All of them, from `place()` to `close()`, in the network namespace of the thread that placed them."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    directory: Path = Path()
    sockets: list[Canary] = field(default_factory=list)
    lock: int = -1
    """Says that the directory is in use: an fd of it."""

    @classmethod
    def place(cls) -> "Canaries":
        """Open the sockets and write the file. OSError if that fails."""
        placed = cls()
        _remove_left()
        placed.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            placed.lock = os.open(placed.directory, _DIRECTORY)
            fcntl.flock(placed.lock, fcntl.LOCK_EX)
            placed.directory.chmod(0o755)
            placed.file.write_text(placed.token)
            placed.file.chmod(0o644)
            for address in _addresses():
                placed._internet(address)
            placed._unix("the host's abstract socket", f"hermes-verify-{placed.token}", abstract=True)
            placed._unix("the host's socket file", str(placed.directory / "socket"), abstract=False)
        except BaseException:
            placed.close()
            raise
        return placed

    @property
    def file(self) -> Path:
        """A file that everyone on the host may read."""
        return self.directory / "file"

    @property
    def names(self) -> frozenset[str]:
        """What there is in the directory."""
        return frozenset(
            {"file", *(Path(one.address).name for one in self.sockets if one.family == socket.AF_UNIX and one.port >= 0)}
        )

    def touched(self) -> list[str]:
        """The names of the sockets that the token came to. Connections without it are somebody else's."""
        return sorted({canary.name for canary in self.sockets if self._got(canary)})

    def close(self) -> None:
        """Take them away. Safe to call twice."""
        for canary in self.sockets:
            canary.sock.close()
        self.sockets.clear()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def _got(self, canary: Canary) -> bool:
        token = self.token.encode()
        if canary.kind == socket.SOCK_DGRAM:
            with suppress(BlockingIOError):
                while True:
                    if token in canary.sock.recv(256):
                        return True
            return False
        with suppress(BlockingIOError):
            while True:
                with canary.sock.accept()[0] as connection:
                    connection.setblocking(False)
                    with suppress(OSError):
                        if token in connection.recv(256):
                            return True
        return False

    def _internet(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
            sock = socket.socket(family, kind)
            with suppress(OSError):  # an address that has gone meanwhile
                sock.bind((address, 0))
                self._keep(f"{name} port of {address}", family, kind, address, sock.getsockname()[1], sock)
                continue
            sock.close()

    def _unix(self, name: str, address: str, *, abstract: bool) -> None:
        for kind, suffix in ((socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, ".datagrams")):
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.bind(f"\0{address}{suffix}" if abstract else address + suffix)
            if not abstract:
                Path(address + suffix).chmod(0o777)
            self._keep(name + (" for datagrams" if suffix else ""), socket.AF_UNIX, kind, address + suffix, -abstract, sock)

    def _keep(
        self,
        name: str,
        family: socket.AddressFamily,
        kind: socket.SocketKind,
        address: str,
        port: int,
        sock: socket.socket,
    ) -> None:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.listen(16)
        self.sockets.append(Canary(name, family, kind, address, port, sock))


def _remove_left() -> None:
    """Remove the directories of runs that were killed: root's own, that nobody has locked for a while."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            fd = os.open(left, _DIRECTORY)
        except OSError:
            continue
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _YOUNG:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _addresses() -> list[str]:
    """The addresses of this network namespace, loopback first."""
    found = ["127.0.0.1"]
    with suppress(OSError):
        found += _LOCAL.findall(Path("/proc/thread-self/net/fib_trie").read_text())
    with suppress(OSError):
        for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
            words = line.split()
            if words[3] != "20":  # link-local addresses need an interface to go with them
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
    return list(dict.fromkeys(found))
