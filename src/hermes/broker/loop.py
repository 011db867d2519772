"""Loop devices: a file as a block device, which is gone when nothing uses it any more, whoever dies. Blocking, but short."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CONTROL = "/dev/loop-control"
_MAJOR = 7
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY = 1
_AUTOCLEAR = 4
_TRIES = 256
"""Races for a free device that may be lost: each is won by somebody else."""
_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q8Q")


@contextmanager
def attached(file: int, *, read_only: bool = False) -> Iterator[str]:
    """The path of a device that stands for the file (an fd). What is mounted from it meanwhile keeps it after; else it is gone.

    OSError says what is wrong: `ENOSYS` that the kernel has no loop devices, `EMFILE` that all are in use.
    """
    device, path = _attach(file, _AUTOCLEAR | (_READ_ONLY if read_only else 0))
    try:
        yield path
    finally:
        os.close(device)


def _attach(file: int, flags: int) -> tuple[int, str]:
    config = _CONFIG.pack(file, 0, *(0,) * 5, 0, 0, 0, flags, b"", b"", b"", *(0,) * 10)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise OSError(errno.ENOSYS, "the kernel offers no loop devices (modprobe loop)", _CONTROL) from error
    try:
        for _ in range(_TRIES):
            try:
                number = fcntl.ioctl(control, _GET_FREE)
            except OSError as error:
                raise OSError(
                    errno.EMFILE, f"no loop device is free, and none can be added: {error.strerror}", _CONTROL
                ) from error
            path = f"/dev/loop{number}"
            device = _open(path, number)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others take every free loop device first", _CONTROL)


def _open(path: str, number: int) -> int:
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with suppress(FileExistsError):  # there is no devtmpfs that makes it by itself, or it is slow
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
