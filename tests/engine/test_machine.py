"""The checks that try things, on the real machine, with both ends."""

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
