"""The sockets that are bound before anybody gives up power."""

import socket
import stat
from pathlib import Path

import pytest

from hermes.broker import sockets
from hermes.errors import MachineError


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use"):
            sockets.bound("127.0.0.1", port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(MachineError, match=r"cannot listen on 192\.0\.2\.1 port 22022"):
        sockets.bound("192.0.2.1", 22022)


def test_ipv4_and_ipv6_side_by_side() -> None:
    with sockets.bound("127.0.0.1", 0) as four:
        port = four.getsockname()[1]
        with sockets.bound("::1", port) as six:
            assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_bound_socket_does_not_listen_yet() -> None:
    with sockets.bound("127.0.0.1", 0) as sock, socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(sock.getsockname())


def test_metrics_are_off() -> None:
    assert sockets.bound_for_metrics("off") is None


def test_metrics_on_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MachineError, match=rf"metrics\.address '{address}': cannot listen on 127\.0\.0\.1 port"):
            sockets.bound_for_metrics(address)


def test_metrics_on_a_path_are_for_few_and_take_the_place_of_a_dead_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    for _ in range(2):
        sock = sockets.bound_for_metrics(str(path))
        assert sock is not None
        sock.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    sock = sockets.bound_for_metrics(str(path))
    assert sock is not None
    sockets.give_up(sock)
    assert not path.exists()


def test_metrics_on_a_path_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    path.write_text("precious")
    with pytest.raises(MachineError, match=r"metrics\.address .*: Address already in use"):
        sockets.bound_for_metrics(str(path))
    assert path.read_text() == "precious"
    with pytest.raises(MachineError, match=r"metrics\.address .*: No such file or directory"):
        sockets.bound_for_metrics(str(tmp_path / "missing" / "metrics.sock"))
