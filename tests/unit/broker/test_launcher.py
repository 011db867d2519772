"""What the launcher prepares: directories, sockets, one sensor a data directory."""

import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from hermes.broker import launcher
from hermes.config import Settings
from hermes.errors import MachineError


def settings_for(data_dir: Path) -> Settings:
    return Settings.model_validate({"data_dir": str(data_dir), "sensor": {"user": "nobody"}})


def test_the_instance_is_the_directorys_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    assert launcher.instance_of(tmp_path / "data") == launcher.instance_of(tmp_path / "link")
    assert launcher.instance_of(tmp_path / "data") != launcher.instance_of(tmp_path)
    assert launcher.runtime_dir(tmp_path).name == launcher.instance_of(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_the_front_owns_only_what_it_writes(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")
    launcher.prepare_directories(settings)
    launcher.prepare_directories(settings)
    nobody = pwd.getpwnam("nobody")
    root = settings.data_dir.stat()
    assert (root.st_uid, stat.S_IMODE(root.st_mode)) == (0, 0o711)
    for directory in (settings.journal_dir, settings.keys_dir, settings.recordings_dir):
        status = directory.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (nobody.pw_uid, 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot prepare"):
        launcher.prepare_directories(settings_for(tmp_path / "file" / "data"))


def test_one_sensor_a_data_directory(tmp_path: Path) -> None:
    with launcher._locked(tmp_path):
        second = launcher._locked(tmp_path)
        with pytest.raises(MachineError, match=rf"another Hermes \(process {os.getpid()}\) runs on"):
            second.__enter__()
    with launcher._locked(tmp_path):
        pass


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
