"""What an address says, and what becomes of it in a network."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.watcher.lookup import Lookup
from hermes.broker.watcher.network import Network, protocol_of, target


def inet(address: str, port: int) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(address))


def inet6(address: str, port: int) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, address)
    return struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, packed, 0)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (inet("192.0.2.1", 80), ("inet", "192.0.2.1", 80)),
        (inet6("2001:db8::1", 443), ("inet6", "2001:db8::1", 443)),
        (b"\1\0/dev/log\0rest", ("unix", "/dev/log", 0)),
        (b"\1\0\0hidden\xff", ("unix", "@hidden\\xff", 0)),
        (b"\1\0", ("unix", "", 0)),
        (struct.pack("=HHII", socket.AF_NETLINK, 0, 7, 0), ("netlink", "7", 0)),
        (b"\2\0\0\x50", ("2", "0050", 0)),
        (b"\x28\0abc", ("40", "616263", 0)),
    ],
)
def test_an_address_is_told(raw: bytes, said: tuple[str, str, int]) -> None:
    found = target(raw)
    assert found is not None
    assert (found.family if said[0] != "2" else "2", found.address, found.port) == said


@pytest.mark.parametrize("raw", [b"", b"\2", b"\0\0", b"\0\0abcdef"])
def test_nobody_is_nobody(raw: bytes) -> None:
    assert target(raw) is None


def test_a_socket_is_told_by_its_protocol() -> None:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        assert [protocol_of(os.getpid(), it.fileno()) for it in (tcp, udp, unix)] == [
            ("tcp", None),
            ("udp", None),
            ("stream", None),
        ]
    with Path("/dev/null").open() as file:
        assert protocol_of(os.getpid(), file.fileno()) == ("", "ENOTSOCK")
    assert protocol_of(os.getpid(), 1 << 20) == ("", "EBADF")


@pytest.fixture
def network() -> Iterator[Network]:
    root = os.open("/", os.O_PATH)
    network = Network(os.getpid(), Lookup(root))
    yield network
    for probe in network._probes.values():
        probe.close()
    os.close(root)


def foretold(network: Network, call: str, protocol: str, raw: bytes, *, root: bool = True) -> str:
    to = target(raw)
    assert to is not None
    return network.foretell(call, protocol, to, cwd=b"/", root=root)


def test_who_listens_is_reached(network: Network) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert foretold(network, "connect", "tcp", inet("127.0.0.1", port)) == "ECONNREFUSED"
        listener.listen()
        assert foretold(network, "connect", "tcp", inet("127.0.0.1", port)) == "connected"
        assert foretold(network, "bind", "tcp", inet("127.0.0.1", port)) == "EADDRINUSE"
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        assert foretold(network, "bind", "udp", inet("0.0.0.0", udp.getsockname()[1])) == "EADDRINUSE"
    assert foretold(network, "sendto", "udp", inet("127.0.0.1", 9)) == "sent"
    assert foretold(network, "connect", "udp", inet("127.0.0.1", 9)) == "connected"
    assert foretold(network, "bind", "tcp", inet("192.0.2.77", 0)) == "EADDRNOTAVAIL"


def test_a_port_of_the_privileged_is_theirs(network: Network) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("this machine lets anyone have any port")
    assert foretold(network, "bind", "tcp", inet("127.0.0.1", 1), root=False) == "EACCES"
    assert foretold(network, "bind", "tcp", inet("127.0.0.1", 1)) == "bound"


def test_nothing_of_the_asking_is_left(network: Network) -> None:
    foretold(network, "sendto", "udp", inet("127.0.0.1", 9))
    for probe in network._probes.values():
        assert probe.getsockname()[1] == 0


def test_unix_sockets_are_found_by_their_name(network: Network, tmp_path: object) -> None:
    path = os.fsencode(f"{tmp_path}/s")
    assert foretold(network, "connect", "stream", b"\1\0" + path) == "ENOENT"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert foretold(network, "connect", "stream", b"\1\0" + path) == "ECONNREFUSED"
        listener.listen()
        assert foretold(network, "connect", "stream", b"\1\0" + path) == "connected"
        assert foretold(network, "bind", "stream", b"\1\0" + path) == "EADDRINUSE"
    assert foretold(network, "connect", "stream", b"\1\0\0no-such-name") == "ECONNREFUSED"
