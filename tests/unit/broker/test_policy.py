"""What the configuration may ask for, and what each engine is told."""

import json
import resource
from pathlib import Path

from hermes.broker.policy import CORE_LIMIT, MEMLOCK_LIMIT, Policy
from hermes.config.models import DEFAULT_CAPABILITIES, LimitsConfig, SecurityConfig


def policy(**security: object) -> Policy:
    return Policy(SecurityConfig.model_validate(security), LimitsConfig(open_files=77, file_size=1 << 21))


def test_defaults_are_accepted() -> None:
    assert policy().capabilities == [f"CAP_{name}" for name in DEFAULT_CAPABILITIES]


def test_confinement() -> None:
    confinement = policy(capabilities=["CHOWN", "SETUID", "SETFCAP"], no_new_privileges=False).confinement()
    assert confinement.capabilities == 1 << 0 | 1 << 7 | 1 << 31
    assert confinement.rlimits == {
        resource.RLIMIT_NOFILE: 77,
        resource.RLIMIT_FSIZE: 1 << 21,
        resource.RLIMIT_CORE: CORE_LIMIT,
        resource.RLIMIT_MEMLOCK: MEMLOCK_LIMIT,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    assert not confinement.no_new_privileges
    assert len(confinement.seccomp) % 8 == 0


def test_one_profile_for_every_engine() -> None:
    one = policy()
    assert json.loads(one.docker_seccomp()) == one.oci_seccomp()
    assert one.bpf() is one.bpf(), "compiled once"


def test_a_profile_of_the_operators_own(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}')
    assert policy(seccomp_profile=path).oci_seccomp()["defaultAction"] == "SCMP_ACT_ALLOW"
