"""What the launcher prepares: names and sockets."""

import socket
from pathlib import Path

import pytest

from hermes.broker import launcher
from hermes.errors import MachineError


def test_the_instance_is_the_directorys_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    assert launcher.instance_of(tmp_path / "data") == launcher.instance_of(tmp_path / "link")
    assert launcher.instance_of(tmp_path / "data") != launcher.instance_of(tmp_path)
    assert launcher.runtime_dir(tmp_path).name == launcher.instance_of(tmp_path)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use"):
            launcher._bound("127.0.0.1", port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(MachineError, match=r"cannot listen on 192\.0\.2\.1 port 22022"):
        launcher._bound("192.0.2.1", 22022)


def test_ipv4_and_ipv6_side_by_side() -> None:
    with launcher._bound("127.0.0.1", 0) as four:
        port = four.getsockname()[1]
        with launcher._bound("::1", port) as six:
            assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
