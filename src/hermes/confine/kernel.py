"""The kernel's calls by which a process gives up power, each typed and raising `OSError`. The zygote's: imports little."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_LOG = 2
_CAPABILITY_VERSION_3 = 0x20080522


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def checked(result: int, what: str) -> int:
    """Return what the C library returned, or raise the `OSError` it left in errno."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    """A system call that libc has no name for; each argument a ctypes value of its own width, or bytes."""
    return checked(_libc.syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, value: int = 0, what: str = "") -> int:
    """prctl(2) with one argument."""
    unused = ctypes.c_ulong(0)
    return checked(_libc.prctl(option, ctypes.c_ulong(value), unused, unused, unused), what or f"prctl {option}")


def set_parent_death_signal(signal: int) -> None:
    """Be sent `signal` when the parent dies. A later change of user or capabilities undoes this."""
    prctl(_PR_SET_PDEATHSIG, signal)


def set_undumpable() -> None:
    """Forbid ptrace and /proc/<pid>/{mem,fd,environ,…} to all but root outside. A later change of user may undo this."""
    prctl(_PR_SET_DUMPABLE, 0)


def set_no_new_privileges() -> None:
    """Make setuid bits and file capabilities mean nothing, for good."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def clear_secure_bits() -> None:
    """Undo what would let a process keep capabilities while it changes its user. Needs SETPCAP."""
    prctl(_PR_SET_SECUREBITS, 0)
    prctl(_PR_SET_KEEPCAPS, 0)


def limit_bounding_set(mask: int) -> None:
    """Drop every capability that is not in `mask` from the bounding and ambient sets. Needs SETPCAP."""
    unused = ctypes.c_ulong(0)
    checked(_libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), unused, unused, unused), "prctl ambient")
    for number in range(last_capability() + 1):
        if not mask >> number & 1:
            prctl(_PR_CAPBSET_DROP, number)


def last_capability() -> int:
    """The highest capability this kernel knows; found by asking, so that it works in any mount namespace."""
    unused = ctypes.c_ulong(0)
    number = 63
    while number > 0 and _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(number), unused, unused, unused) < 0:
        number -= 1
    return number


def set_capabilities(mask: int) -> None:
    """Make `mask` the effective and permitted set; the inheritable set becomes empty."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    checked(_libc.capset(header, struct.pack("6I", low, low, 0, high, high, 0)), "capset")


def set_seccomp_filter(program: bytes, *, logged: bool = False) -> None:
    """Put the calling thread under a filter: `program` is an array of `struct sock_filter`.

    `logged`: the kernel's log states what the filter refuses.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.addressof(buffer))
    flags = ctypes.c_uint(_SECCOMP_FILTER_FLAG_LOG if logged else 0)
    number = _SECCOMP[os.uname().machine]
    syscall(number, "seccomp", ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), flags, ctypes.byref(filter_))
