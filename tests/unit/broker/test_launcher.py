"""What the launcher prepares: names and sockets."""

import socket
from pathlib import Path

import pytest

from hermes.broker import launcher
from hermes.broker.children import Child
from hermes.config import Settings
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
            launcher._listening("127.0.0.1", port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(MachineError, match=r"cannot listen on 192\.0\.2\.1 port 22022"):
        launcher._listening("192.0.2.1", 22022)


def test_ipv4_and_ipv6_side_by_side() -> None:
    with launcher._listening("127.0.0.1", 0) as four:
        port = four.getsockname()[1]
        with launcher._listening("::1", port) as six:
            assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@pytest.mark.asyncio
async def test_a_child_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "START_PATIENCE", 0.01)
    said: list[str] = []
    waiting = launcher._Launcher(Settings(data_dir=tmp_path), [], -1, said.append)
    child = Child("front", 1)
    child.lines.put_nowait("progress importing")
    with pytest.raises(MachineError, match="the front does not start"):
        await waiting._until(child, "ready")
    assert said == ["importing"]
