"""How a process becomes one that was never powerful: another user, no capabilities, few files, few system calls."""

import ctypes
import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

import structlog

from hermes.confine import kernel, landlock
from hermes.errors import MachineError

log = structlog.get_logger(__name__)


def confine(user: str, program: bytes, rules: Sequence[landlock.Rule], *, connects: bool = False) -> None:
    """Become `user` for good, with the files of `rules` and the system calls that the filter `program` lets through; with
    TCP ports to connect to only if it `connects`.

    What was open or imported before remains; nothing can be imported after. Raises MachineError, for a process that has
    threads too. Where the kernel has no Landlock, or an older one, the log says what is not restricted.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise MachineError("a process with threads cannot be confined")
    version = landlock.abi()
    try:
        _make_ready()
        drop_privileges(user)
        landlock.restrict(rules, version, connects=connects)
        kernel.set_seccomp_filter(program, logged=True)
    except OSError as error:
        raise MachineError(f"it cannot be confined: {error.filename or ''}: {error.strerror}") from error
    sys.meta_path.insert(0, _TooLate())
    if lacking := landlock.missing(version):
        log.warning("Landlock does not restrict this process fully on this kernel", abi=version, missing=", ".join(lacking))


def drop_privileges(user: str) -> None:
    """Become `user` for good: no groups, no capabilities, no way back, no core dumps, and dead when the launcher dies."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise MachineError(f"sensor.user {user!r} does not exist: run scripts/setup, or useradd --system {user}") from None
    if os.geteuid() == 0:
        kernel.clear_secure_bits()
        kernel.limit_bounding_set(0)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    kernel.set_capabilities(0)
    if 0 in (os.geteuid(), os.getegid(), *os.getgroups()):
        raise MachineError("it still has root's power")
    kernel.set_no_new_privileges()
    kernel.set_undumpable()
    kernel.set_parent_death_signal(signal.SIGTERM)
    os.umask(0o077)


def _make_ready() -> None:
    """Read what libraries would read later, when they may not any more."""
    ctypes.CDLL("libgcc_s.so.1")  # glibc loads it when a thread is cancelled or exits early, and aborts if it cannot
    time.tzset()
    time.localtime()


class _TooLate(MetaPathFinder):
    """Finds nothing, and says so loudly: what is not imported yet may not be read any more."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        log.error("imported too late", module=fullname)
        raise ModuleNotFoundError(f"{fullname} is imported too late", name=fullname)
