"""Host keys are made once and kept."""

import stat
from pathlib import Path

import pytest

from hermes.errors import MachineError
from hermes.server.hostkeys import load_or_make


def test_made_once_then_kept(tmp_path: Path) -> None:
    first = load_or_make(tmp_path / "keys")
    second = load_or_make(tmp_path / "keys")
    assert [key.get_algorithm() for key in first] == ["ssh-rsa", "ecdsa-sha2-nistp256", "ssh-ed25519"]
    assert [key.public_data for key in first] == [key.public_data for key in second]
    for path in (tmp_path / "keys").glob("*_key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list((tmp_path / "keys").iterdir())) == 6


def test_a_damaged_key_is_named_and_left_alone(tmp_path: Path) -> None:
    load_or_make(tmp_path)
    damaged = tmp_path / "ssh_host_ed25519_key"
    damaged.write_text("not a key")
    with pytest.raises(MachineError, match="ssh_host_ed25519_key is damaged"):
        load_or_make(tmp_path)
    assert damaged.read_text() == "not a key"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot make the host keys' directory"):
        load_or_make(tmp_path / "file" / "keys")
