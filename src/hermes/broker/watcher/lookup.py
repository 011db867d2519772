"""Whether what a process is about to execute can be executed, as the kernel is going to find: looked up in the box, not run.

A file may be changed between this look and the kernel's: what is foretold here is checked afterwards where that can be seen.
"""

import ctypes
import errno
import os
import re
import stat
import struct
from collections import OrderedDict
from contextlib import suppress

from hermes.confine.kernel import syscall

REMEMBERED = 2048
"""Files of which is remembered what they are."""
_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_HOW = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
_HOW_SIZE = ctypes.c_size_t(len(_HOW))
_HEADER = struct.Struct("=16sHHIQQQIHHH")
_SEGMENT = struct.Struct("=IIQQQQ")
_INTERPRETER_SEGMENT = 3
_MACHINES = {"x86_64": {(2, 62), (1, 3)}, "aarch64": {(2, 183), (1, 40)}}
"""Class and machine of ELF files the kernel takes; those of 32 bits it begins to execute."""
_SCRIPTS = 5
_MAX_INTERPRETER = 256
_AT_FDCWD = 0xFFFFFF9C
_OWN_FD = re.compile(rb"/(?:proc/(?:self|thread-self)/fd|dev/fd)/(\d{1,9})")


class Lookup:
    """Looks programs up in the box whose root directory `root` is an fd of (O_PATH)."""

    def __init__(self, root: int) -> None:
        self._root = ctypes.c_int(root)
        self._known: OrderedDict[tuple[int, ...], str | None] = OrderedDict()

    def program(self, tid: int, path: bytes, cwd: bytes) -> str | None:
        """Why `path` cannot be executed by the thread, such as `ENOENT`; None: it can, as far as can be told. Who may go where is
        not looked at."""
        if not path:
            return "ENOENT"
        if (own := descriptor_of(path)) is not None:
            return self.descriptor(tid, own)
        if path.startswith(b"/proc/"):
            return None
        try:
            fd = self._open(path if path.startswith(b"/") else cwd + b"/" + path)
        except OSError as error:
            return _name(error) if self._has_boxs_root(tid) else None
        return self._judge(fd)

    def at(self, tid: int, directory: int, path: bytes, cwd: bytes) -> str | None:
        """The same for execveat(2)."""
        if path.startswith(b"/") or directory & 0xFFFFFFFF == _AT_FDCWD:
            return self.program(tid, path, cwd)
        if not path:
            return self.descriptor(tid, directory)
        try:
            base = os.readlink(b"/proc/%d/fd/%d" % (tid, directory))  # noqa: PTH115
        except OSError:
            return "EBADF"
        return self.program(tid, base + b"/" + path, b"")

    def descriptor(self, tid: int, fd: int) -> str | None:
        """The same for an open file of the thread's."""
        try:
            opened = os.open(f"/proc/{tid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return "EBADF"
        return self._judge(opened)

    def exists(self, path: bytes, cwd: bytes) -> os.stat_result | None:
        """What is at that path in the box."""
        try:
            fd = self._open(path if path.startswith(b"/") else cwd + b"/" + path)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open(self, path: bytes) -> int:
        return syscall(_OPENAT2, "openat2", self._root, path, _HOW, _HOW_SIZE)

    @staticmethod
    def _has_boxs_root(tid: int) -> bool:
        with suppress(OSError):
            return os.readlink(f"/proc/{tid}/root") == "/"  # noqa: PTH115
        return False

    def _judge(self, fd: int, depth: int = 0) -> str | None:
        """Takes the fd (O_PATH) over."""
        try:
            there = os.fstat(fd)
            if not stat.S_ISREG(there.st_mode) or not there.st_mode & 0o111:
                return "EACCES"
            key = (there.st_dev, there.st_ino, there.st_size, there.st_ctime_ns)
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            verdict = "EACCES" if os.fstatvfs(fd).f_flag & os.ST_NOEXEC else self._format(fd, depth)
            self._known[key] = verdict
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return verdict
        except OSError as error:
            return _name(error)
        finally:
            os.close(fd)

    def _format(self, path_fd: int, depth: int) -> str | None:
        try:
            fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # somebody in the box holds a lease on it
            return None
        try:
            head = os.pread(fd, 256, 0)
            if head.startswith(b"#!"):
                words = head[2:].partition(b"\n")[0].strip(b" \t").split(maxsplit=1)
                if not words:
                    return "ENOEXEC"
                return self._interpreter(words[0].rstrip(b"\0"), depth + 1)
            if not head.startswith(b"\x7fELF") or len(head) < _HEADER.size:
                return "ENOEXEC"
            kind, machine = head[4], int.from_bytes(head[18:20], "little")
            if (kind, machine) not in _MACHINES[os.uname().machine]:
                return "ENOEXEC"
            if kind == 1:
                return None
            _, _, _, _, _, offset, _, _, _, size, count = _HEADER.unpack_from(head)
            if size != _SEGMENT.size + 16 or not 0 < count <= 65536 // size:
                return "ENOEXEC"
            segments = os.pread(fd, size * count, offset)
            for place in range(0, len(segments) - size + 1, size):
                what, _, start, _, _, length = _SEGMENT.unpack_from(segments, place)
                if what == _INTERPRETER_SEGMENT:
                    if not 1 < length <= 4096:
                        return "ENOEXEC"
                    return self._interpreter(os.pread(fd, length, start).rstrip(b"\0"), depth + 1)
            return None
        except (OverflowError, struct.error):
            return "ENOEXEC"
        finally:
            os.close(fd)

    def _interpreter(self, path: bytes, depth: int) -> str | None:
        if depth > _SCRIPTS:
            return "ELOOP"
        if not path.startswith(b"/") or len(path) > _MAX_INTERPRETER:
            return None
        try:
            fd = self._open(path)
        except OSError as error:
            return _name(error)
        return self._judge(fd, depth)


def descriptor_of(path: bytes) -> int | None:
    """The descriptor of a process's own that the path names, as fexecve(3) does."""
    own = _OWN_FD.fullmatch(path)
    return int(own[1]) if own is not None else None


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")
