"""The try-outs of an idmapped overlay and of a box's disk, where they can and cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

from hermes.broker.machine import State, check_box_disk, check_overlay
from hermes.broker.machine_facts import Machine
from hermes.config import Settings

pytestmark = pytest.mark.root


def test_a_disk_without_idmapped_mounts_is_found(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        result = check_overlay(Settings.model_validate({"data_dir": str(tmp_path)}), Machine())
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert result.state is State.FAILED
    assert "idmapped mounts" in result.detail
    assert "ext4" in result.fix


def test_a_disk_is_made_and_mounted(tmp_path: Path) -> None:
    result = check_box_disk(Settings.model_validate({"data_dir": str(tmp_path)}), Machine())
    assert (result.state, result.fix) == (State.OK, "")


@pytest.mark.parametrize("what", ["overlay", "disk"])
def test_the_probe_leaves_no_mount_behind(tmp_path: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hermes.broker.machine_probe", what, tmp_path], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list(tmp_path.iterdir()) == []
