"""Landlock: a process gives up all files, TCP ports and signals but those it names. Kernels know more of it or less (`abi()`)."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from hermes.confine import kernel
from hermes.errors import MachineError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


class Files(IntFlag):
    """Rights to files, by their bit; `linux/landlock.h` tells what each means."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


OWN = (
    Files.READ_FILE | Files.WRITE_FILE | Files.TRUNCATE | Files.READ_DIR | Files.MAKE_REG | Files.MAKE_DIR
    | Files.REMOVE_FILE | Files.REMOVE_DIR | Files.REFER
)  # fmt: skip
"""What one may do in a directory of one's own: anything with regular files and directories; no links, devices or programs."""
READ = Files.READ_FILE | Files.READ_DIR
"""What one may do in a directory of others."""
_OF_A_FILE = Files.EXECUTE | Files.WRITE_FILE | Files.READ_FILE | Files.TRUNCATE | Files.IOCTL_DEV

_FILES_BY_ABI = ((1, Files(0x1FFF)), (2, Files.REFER), (3, Files.TRUNCATE), (5, Files.IOCTL_DEV))
_TCP_ABI, _TCP, _TCP_BIND = 4, 0b11, 0b01  # bind, connect
_SCOPE_ABI, _SCOPE = 6, 0b11  # abstract unix sockets, signals
_PROMISES = (
    (1, "files (Linux 5.13)"),
    (3, "truncation (6.2)"),
    (4, "TCP (6.7)"),
    (6, "signals and abstract sockets (6.12)"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights to a file, or to everything in a directory."""

    path: Path
    rights: Files
    complaint: str = ""
    """What an operator is told, before the reason, when it cannot be reached."""
    optional: bool = False
    """Without effect when it cannot be reached."""


def abi() -> int:
    """The version of Landlock that this kernel has; 0 for none, or when it is switched off."""
    try:
        return kernel.syscall(_CREATE_RULESET, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def missing(version: int) -> list[str]:
    """What a kernel with this version cannot restrict, and the Linux that can."""
    return [what for since, what in _PROMISES if version < since]


def restrict(rules: Sequence[Rule], version: int, *, connects: bool = False) -> None:
    """Give up, for good, what the kernel's `version` restricts: all files but those of `rules`, all TCP ports to bind or (unless
    it `connects`) connect to, signals to any process that is not restricted with this one. Needs no_new_privs; holds for the
    calling thread."""
    if version < 1:
        return
    handled = Files(0)
    for since, rights in _FILES_BY_ABI:
        handled |= rights if version >= since else Files(0)
    attributes = struct.pack(
        "QQQ", handled, (_TCP_BIND if connects else _TCP) * (version >= _TCP_ABI), _SCOPE * (version >= _SCOPE_ABI)
    )
    size = ctypes.c_size_t(len(attributes))
    ruleset = kernel.syscall(_CREATE_RULESET, "landlock_create_ruleset", attributes, size, ctypes.c_uint(0))
    try:
        for rule in rules:
            _allow(ruleset, rule, handled)
        kernel.syscall(_RESTRICT_SELF, "landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, rule: Rule, handled: Files) -> None:
    try:
        fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if rule.optional:
            return
        if not rule.complaint:
            raise
        raise MachineError(f"{rule.complaint}: {rule.path}: {error.strerror}") from error
    try:
        rights = rule.rights & handled
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_A_FILE
        attributes = struct.pack("=Qi", rights, fd)
        kind, flags = ctypes.c_int(_RULE_PATH_BENEATH), ctypes.c_uint(0)
        kernel.syscall(_ADD_RULE, f"landlock: {rule.path}", ctypes.c_int(ruleset), kind, attributes, flags)
    finally:
        os.close(fd)
