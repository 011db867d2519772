"""The profile, judged by running its BPF on system calls as the kernel does."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.broker import seccomp
from hermes.errors import ConfigError
from tests.unit.bpf import ALLOW, ERRNO, I386, KILL, X86_64, verdict

HIGH = 1 << 35


@pytest.fixture(scope="module")
def program() -> bytes:
    if seccomp.machine()[2] != X86_64:
        pytest.skip("the numbers are x86_64's")
    return seccomp.compile_bpf(seccomp.resolved(seccomp.builtin(), frozenset({"CHOWN"})))


@pytest.mark.parametrize("number", [0, 1, 59, 57, 58, 101, 39, 257, 302, 334])
def test_everyday_calls_are_allowed(program: bytes, number: int) -> None:
    assert verdict(program, number) == ALLOW


@pytest.mark.parametrize(
    "number", [165, 166, 272, 308, 155, 250, 248, 249, 321, 298, 323, 425, 426, 427, 311, 438, 169, 304, 303, 103]
)
def test_dangerous_calls_are_refused(program: bytes, number: int) -> None:
    assert verdict(program, number) == ERRNO | errno.EPERM


@pytest.mark.parametrize("number", [435, 9999, 180])
def test_others_do_not_exist(program: bytes, number: int) -> None:
    assert verdict(program, number) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("number", [162, 306])
def test_sync_pretends(program: bytes, number: int) -> None:
    assert verdict(program, number) == ERRNO


@given(flags=st.integers(0, 2**64 - 1))
def test_clone_makes_no_namespace(program: bytes, flags: int) -> None:
    assert (verdict(program, 56, flags) == ALLOW) == (flags & 0x7E020080 == 0)


@given(family=st.integers(0, 2**64 - 1) | st.integers(0, 60), protocol=st.integers(0, 2**64 - 1) | st.integers(0, 30))
def test_socket_families(program: bytes, family: int, protocol: int) -> None:
    allowed = family == 1 or (family in (2, 10) and protocol in (0, 6)) or (family == 16 and protocol == 0)
    assert (verdict(program, 41, family, 1, protocol) == ALLOW) == allowed
    assert (verdict(program, 53, family, 1, protocol) == ALLOW) == (family == 1)


NUMBERS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(("family", "ping"), [(2, 1), (10, 58)])
@given(
    kind=st.integers(0, 15) | NUMBERS,
    flags=st.sampled_from([0, 0o4000, 0o2000000, HIGH]),
    protocol=st.integers(0, 300) | NUMBERS | st.sampled_from([0, 6, 17, 58, HIGH, 6 | HIGH, 17 | HIGH]),
)
def test_internet_sockets_load_no_modules(program: bytes, family: int, ping: int, kind: int, flags: int, protocol: int) -> None:
    allowed = {1: protocol in (0, 6), 2: protocol in (0, ping, 17), 3: True}.get(kind & 0xF, False)
    assert verdict(program, 41, family, kind | flags, protocol) == (ALLOW if allowed else ERRNO | errno.EPROTONOSUPPORT)


@pytest.mark.parametrize(
    ("kind", "protocol"), [(1, 132), (5, 132), (1, 262), (6, 33), (2, 115), (2, 136), (10, 768)],
    ids=["sctp", "sctp-seqpacket", "mptcp", "dccp", "l2tp", "udplite", "packet"],
)  # fmt: skip
def test_other_transports_are_not_there(program: bytes, kind: int, protocol: int) -> None:
    for family in (2, 10):
        assert verdict(program, 41, family, kind, protocol) == ERRNO | errno.EPROTONOSUPPORT


FORBIDDEN = {0x5412: errno.EIO, 0x541C: errno.ENOTTY, 0x5423: errno.EINVAL}
"""TIOCSTI, TIOCLINUX, TIOCSETD."""


@given(command=NUMBERS | st.sampled_from([*FORBIDDEN, *(command | HIGH for command in FORBIDDEN), 0x5413, 0x5401, 0x5424]))
def test_ioctl_forbids_commands_whatever_the_high_bits(program: bytes, command: int) -> None:
    error = FORBIDDEN.get(command & 0xFFFFFFFF)
    assert verdict(program, 16, 0, command) == (ALLOW if error is None else ERRNO | error)


@pytest.mark.parametrize("persona", [0, 0xFFFFFFFF, 8, 0x0400000, 0x0040000])
def test_personality(program: bytes, persona: int) -> None:
    assert (verdict(program, 135, persona) == ALLOW) == (persona in (0, 0xFFFFFFFF))


@given(number=st.integers(0, 600))
def test_other_architectures_die(program: bytes, number: int) -> None:
    assert verdict(program, number, architecture=I386) == KILL
    assert verdict(program, number | 0x40000000) == KILL


@given(values=st.frozensets(st.integers(0, 2**32 - 1), max_size=4), candidate=st.integers(0, 2**64 - 1))
def test_all_but_is_the_complement(values: frozenset[int], candidate: int) -> None:
    pairs = seccomp.all_but(values)
    for number in (candidate, *values, *(value | HIGH for value in values), *(value ^ 1 for value in values)):
        matched = sum(number & mask == value for mask, value in pairs)
        assert matched == (number & 0xFFFFFFFF not in values)


def test_a_rule_may_depend_on_capability_architecture_and_kernel() -> None:
    def rule(name: str, **conditions: object) -> dict[str, object]:
        return {"names": [name], "action": "SCMP_ACT_ALLOW", **conditions}

    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            rule("read"),
            rule("chroot", includes={"caps": ["CAP_SYS_CHROOT"]}),
            rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("write", excludes={"caps": ["CAP_SYS_CHROOT"]}),
            rule("open", includes={"arches": ["s390x"]}),
            rule("close", includes={"minKernel": "3.1"}),
            rule("pipe", includes={"minKernel": "999.0"}),
        ],
    }
    resolved = seccomp.resolved(profile, frozenset({"SYS_CHROOT"}))
    assert [entry["names"] for entry in resolved["syscalls"]] == [["read"], ["chroot"], ["close"]]
    assert resolved["defaultErrnoRet"] == errno.EPERM


def test_the_stock_docker_profile_compiles(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rules = [
        {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": None},
        {"name": "write", "action": "SCMP_ACT_LOG"},
    ]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules}))
    program = seccomp.compile_bpf(seccomp.resolved(seccomp.load(profile), frozenset()))
    assert (verdict(program, 0), verdict(program, 1), verdict(program, 2)) == (ALLOW, 0x7FFC0000, KILL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"defaultAction": "SCMP_ACT_ALLOW"}', '{"defaultAction": 1, "syscalls": [1]}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="seccomp_profile"):
        seccomp.load(path)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        seccomp.load(tmp_path / "none")


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ConfigError, match="SCMP_ACT_TRAP"):
        seccomp.compile_bpf({"defaultAction": "SCMP_ACT_TRAP", "syscalls": []})
