"""The checks that try things, on the real machine, with both ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from hermes.broker.machine import (
    Check,
    State,
    check_cgroups,
    check_kernel,
    check_overlay,
    check_runtime,
    check_seccomp,
    check_user_namespaces,
)
from hermes.broker.machine_facts import Machine
from hermes.config import Settings

pytestmark = pytest.mark.root


CHECKS = [check_kernel, check_user_namespaces, check_overlay, check_cgroups, check_runtime, check_seccomp]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_machine_that_runs_these_tests_passes(check: Check, tmp_path: Path) -> None:
    result = check(Settings.model_validate({"data_dir": str(tmp_path / "data")}), Machine())
    assert result.state is State.OK, result
    assert list(tmp_path.iterdir()) == []


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


def test_the_probe_leaves_no_mount_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "hermes.broker.machine_probe", tmp_path], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list(tmp_path.iterdir()) == []
