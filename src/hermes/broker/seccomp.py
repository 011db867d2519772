"""Seccomp profiles in Docker's JSON: read, resolve for this machine, and compile to BPF with libseccomp.

The built-in profile is `seccomp.json` next to this file, plus `ioctl`, whose two forbidden commands no list of allowed
values can state: see `all_but`.
"""

import ctypes
import errno
import json
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from hermes.errors import ConfigError, MachineError

Rule: TypeAlias = dict[str, Any]
Profile: TypeAlias = dict[str, Any]

TIOCSTI = 0x5412
TIOCLINUX = 0x541C

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
    for mask, value in all_but(frozenset({TIOCSTI, TIOCLINUX})):
        arguments = [{"index": 1, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]
        profile["syscalls"].append({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": arguments})
    for value, error in ((TIOCSTI, errno.EIO), (TIOCLINUX, errno.ENOTTY)):
        arguments = [{"index": 1, "value": 0xFFFFFFFF, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]
        profile["syscalls"].append({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": arguments})
    return profile


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
