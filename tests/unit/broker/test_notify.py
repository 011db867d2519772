"""What systemd is told, byte for byte."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.notify import ServiceManager


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def test_what_is_said(systemd: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname()})
    manager.status("warming the pool: 1 of 3")
    manager.ready()
    manager.reloading()
    manager.alive()
    manager.stopping()
    said = [systemd.recv(1000) for _ in range(5)]
    assert said[:2] == [b"STATUS=warming the pool: 1 of 3", b"READY=1"]
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", said[2])
    assert said[3:] == [b"WATCHDOG=1", b"STOPPING=1"]


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0hermes-notify-{os.getpid()}")
        ServiceManager({"NOTIFY_SOCKET": f"@hermes-notify-{os.getpid()}"}).ready()
        assert sock.recv(100) == b"READY=1"


def test_the_watchdog_is_in_seconds(systemd: socket.socket) -> None:
    where = {"NOTIFY_SOCKET": systemd.getsockname()}
    assert ServiceManager({**where, "WATCHDOG_USEC": "30000000"}).watchdog == 30.0
    assert ServiceManager({**where, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}).watchdog == 30.0
    assert ServiceManager({**where, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog == 0
    assert ServiceManager({**where, "WATCHDOG_USEC": "soon"}).watchdog == 0
    assert ServiceManager({"WATCHDOG_USEC": "30000000"}).watchdog == 0


@pytest.mark.parametrize("where", ["", "vsock:2:1234", "/nowhere/at/all", "relative"])
def test_nobody_to_tell_is_no_error(where: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": where}).ready()
