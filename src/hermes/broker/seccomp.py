"""Seccomp profiles in Docker's JSON: read, resolve for this machine, and compile to BPF with libseccomp.

The built-in profile is `seccomp.json` next to this file, plus what no list of allowed values can state (see `all_but`): the
forbidden commands of `ioctl`, and which internet sockets there are.
"""

import ctypes
import errno
import json
import os
import platform
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from hermes.errors import ConfigError, MachineError

Rule: TypeAlias = dict[str, Any]
Profile: TypeAlias = dict[str, Any]

IOCTLS = {0x5412: errno.EIO, 0x541C: errno.ENOTTY, 0x5423: errno.EINVAL}
"""Commands refused, and how: TIOCSTI types into a terminal, TIOCLINUX reads consoles, TIOCSETD has the host load modules."""

INTERNET = {
    socket.AF_INET: {socket.SOCK_STREAM: (0, 6), socket.SOCK_DGRAM: (0, 1, 17)},
    socket.AF_INET6: {socket.SOCK_STREAM: (0, 6), socket.SOCK_DGRAM: (0, 17, 58)},
}
"""By family and type, the protocols a socket may have: TCP, UDP and ping. For others (SCTP, DCCP, L2TP, MPTCP) the host
would load modules. A raw socket may have any; it never loads one."""

_ARCHITECTURES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64", 0xC000003E),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64", 0xC00000B7),
}
_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
_BAD_ARCHITECTURE, _OPTIMIZE = 2, 8
_TYPE_MASK = 0xF  # of socket(2)'s type; the rest are flags
_ALL_BITS = (1 << 64) - 1


def all_but(values: frozenset[int], bits: int = 32) -> list[tuple[int, int]]:
    """Return `(mask, value)` pairs: `x & mask == value` holds for one of them exactly if x, cut to `bits`, is none of `values`.

    A filter compares 64 bits where the kernel looks at 32, so "not equal" alone is passed by setting a high bit.
    """
    pairs: list[tuple[int, int]] = []
    prefixes = {0}
    mask = 0
    for bit in (1 << place for place in reversed(range(bits))):
        mask |= bit
        wanted = {value & mask for value in values}
        pairs += [(mask, child) for prefix in prefixes for child in (prefix, prefix | bit) if child not in wanted]
        prefixes = wanted
    return pairs


def builtin() -> Profile:
    """The built-in profile, in Docker's JSON form."""
    profile: Profile = json.loads(Path(__file__).with_name("seccomp.json").read_text())
    rules = [_rule("ioctl", None, _masked(1, mask, value)) for mask, value in all_but(frozenset(IOCTLS))]
    rules += [_rule("ioctl", error, _masked(1, 0xFFFFFFFF, value)) for value, error in IOCTLS.items()]
    for family, protocols in INTERNET.items():
        rules += _internet(int(family), {int(kind): frozenset(allowed) for kind, allowed in protocols.items()})
    profile["syscalls"] += rules
    return profile


def _internet(family: int, protocols: dict[int, frozenset[int]]) -> Iterator[Rule]:
    """Rules for every socket of a family, of which each matches exactly one."""
    asked = {"index": 0, "value": family, "op": "SCMP_CMP_EQ"}
    for kind, allowed in protocols.items():
        of_kind = _masked(1, _TYPE_MASK, kind)
        bits = max(allowed).bit_length()
        for protocol in allowed:
            yield _rule("socket", None, asked, of_kind, {"index": 2, "value": protocol, "op": "SCMP_CMP_EQ"})
        for mask, value in all_but(allowed, bits):
            yield _rule("socket", errno.EPROTONOSUPPORT, asked, of_kind, _masked(2, mask | _ALL_BITS << bits & _ALL_BITS, value))
        above = {"index": 2, "value": (1 << bits) - 1, "op": "SCMP_CMP_GT"}
        yield _rule("socket", errno.EPROTONOSUPPORT, asked, of_kind, above)
    yield _rule("socket", None, asked, _masked(1, _TYPE_MASK, int(socket.SOCK_RAW)))
    for mask, value in all_but(frozenset({*protocols, int(socket.SOCK_RAW)}), _TYPE_MASK.bit_length()):
        yield _rule("socket", errno.EPROTONOSUPPORT, asked, _masked(1, mask, value))


def _masked(index: int, mask: int, value: int) -> Rule:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _rule(name: str, error: int | None, *arguments: Rule) -> Rule:
    """Let a system call with such arguments through, or answer it with an error."""
    outcome: Rule = {"action": "SCMP_ACT_ALLOW"} if error is None else {"action": "SCMP_ACT_ERRNO", "errnoRet": error}
    return {"names": [name], "args": list(arguments), **outcome}


def load(path: Path) -> Profile:
    """Read a profile in OCI's or Docker's JSON form. `ConfigError` if it is none."""
    try:
        profile = json.loads(path.read_text())
        resolved(profile, frozenset())
    except OSError as error:
        raise ConfigError(f"container_pool.security.seccomp_profile: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"container_pool.security.seccomp_profile: {path} is no seccomp profile: {error!r}") from error
    assert isinstance(profile, dict)
    return profile


def machine() -> tuple[str, str, int]:
    """This machine's architecture as Docker, as OCI and as the kernel's audit names it. `MachineError` if it is not supported."""
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise MachineError(f"architecture {platform.machine()} is not supported: use x86_64 or aarch64") from None


def _applies(condition: Rule, capabilities: frozenset[str], kernel: tuple[int, ...], *, every: bool) -> bool:
    tests: list[bool] = []
    if arches := condition.get("arches"):
        tests.append(machine()[0] in arches)
    if caps := condition.get("caps"):
        held = [cap.removeprefix("CAP_") in capabilities for cap in caps]
        tests.append(all(held) if every else any(held))
    if minimum := condition.get("minKernel"):
        tests.append(kernel >= tuple(map(int, minimum.split("."))))
    return all(tests) if every else any(tests)


def resolved(profile: Profile, capabilities: frozenset[str]) -> Profile:
    """The profile as OCI's `linux.seccomp`, for this machine and these capabilities (without `CAP_`).

    Only the machine's own architecture is let in: system calls of any other (i386, x32, arm) kill the caller.
    """
    kernel = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    rules: list[Rule] = []
    for entry in profile["syscalls"]:
        includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
        if not _applies(includes, capabilities, kernel, every=True) or _applies(excludes, capabilities, kernel, every=False):
            continue
        rule: Rule = {"names": list(entry.get("names") or [entry["name"]]), "action": entry["action"]}
        if entry.get("args"):
            rule["args"] = entry["args"]
        if entry["action"] == "SCMP_ACT_ERRNO":
            rule["errnoRet"] = entry.get("errnoRet", 1)
        rules.append(rule)
    default: Rule = {"defaultAction": profile["defaultAction"]}
    if default["defaultAction"] == "SCMP_ACT_ERRNO":
        default["defaultErrnoRet"] = profile.get("defaultErrnoRet", 1)
    return default | {"architectures": [machine()[1]], "syscalls": rules}


class _Comparison(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise MachineError("libseccomp.so.2 is missing: apt-get install libseccomp2") from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def number(name: str) -> int | None:
    """The number of a system call on this machine; None if it has none, or is too new for libseccomp."""
    found = int(_library().seccomp_syscall_resolve_name(name.encode()))
    return found if found >= 0 else None


def _action(rule: Rule, name: str = "action", number: str = "errnoRet") -> ctypes.c_uint32:
    try:
        value = _ACTIONS[rule[name]]
    except KeyError:
        raise ConfigError(f"seccomp action {rule[name]} is not supported") from None
    return ctypes.c_uint32(value | rule[number] if rule[name] == "SCMP_ACT_ERRNO" else value)


def _comparisons(rule: Rule) -> Iterator[_Comparison]:
    for argument in rule.get("args") or ():
        yield _Comparison(argument["index"], _OPERATORS[argument["op"]], argument["value"], argument.get("valueTwo", 0))


def compile_bpf(profile: Profile) -> bytes:
    """Compile a resolved profile to an array of `struct sock_filter`. Other architectures' calls kill the process."""
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(_action(profile, "defaultAction", "defaultErrnoRet")))
    if not context:
        raise MachineError("libseccomp cannot make a filter")
    try:
        library.seccomp_attr_set(context, ctypes.c_int(_BAD_ARCHITECTURE), ctypes.c_uint32(_ACTIONS["SCMP_ACT_KILL_PROCESS"]))
        library.seccomp_attr_set(context, ctypes.c_int(_OPTIMIZE), ctypes.c_uint32(2))
        for rule in profile["syscalls"]:
            if rule["action"] == profile["defaultAction"] and rule.get("errnoRet") == profile.get("defaultErrnoRet"):
                continue
            comparisons = tuple(_comparisons(rule))
            array = (_Comparison * len(comparisons))(*comparisons)
            for name in rule["names"]:
                _add(library, context, _action(rule), name, array)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _add(
    library: ctypes.CDLL, context: ctypes.c_void_p, action: ctypes.c_uint32, name: str, array: "ctypes.Array[_Comparison]"
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return
    result = library.seccomp_rule_add_array(context, action, ctypes.c_int(number), ctypes.c_uint(len(array)), array)
    if result < 0 and -result not in (errno.EDOM, errno.EEXIST):
        raise ConfigError(f"seccomp rule for {name} cannot be compiled: {os.strerror(-result)}")


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, ctypes.c_int(fd))
        if result < 0:
            raise MachineError(f"libseccomp cannot export a filter: {os.strerror(-result)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
