"""Seccomp user notification: the filter by which a process and all it starts ask before some calls, and the listener's side.

The filter only asks; what may be called at all, the policy's own filter decides. Imported by the zygote: imports little.
"""

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from hermes.confine.kernel import checked

CALLS = {
    "x86_64": {"execve": 59, "execveat": 322, "connect": 42, "bind": 49, "sendto": 44, "sendmsg": 46, "sendmmsg": 307},
    "aarch64": {"execve": 221, "execveat": 281, "connect": 203, "bind": 200, "sendto": 206, "sendmsg": 211, "sendmmsg": 269},
}
"""Numbers of the calls that are asked for, by architecture."""

READY = b"ready"
LISTENER = struct.Struct("=ii")
"""What the spawner says first to its watcher: its pid, and the fd of its listener. Answered by `READY` when that is taken."""
CHANNEL = struct.Struct("=q")
"""What it says before it starts a process: the channel it is for, -1 for none."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_NEW_LISTENER, _WAIT_KILLABLE = 8, 32
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16

_RECEIVE, _SEND, _VALID, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")
_libc = ctypes.CDLL(None, use_errno=True)


class Notification(NamedTuple):
    """A thread that waits for an answer. `tid` is its id in the listener's pid namespace; `nr` the number of the call."""

    id: int
    tid: int
    flags: int
    nr: int
    architecture: int
    pointer: int
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def program() -> bytes:
    """The filter: asks for each of `CALLS`, for sendto only where it names an address. An array of `struct sock_filter`."""
    machine = os.uname().machine
    calls = dict(CALLS[machine])
    sendto = calls.pop("sendto")
    low = _ARGUMENTS + 4 * 8  # of the address: sendto's fifth argument
    to_end = 7 + len(calls)  # from the first comparison with a call to the last line
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _ALLOW),  # another architecture: the policy's filter ends the process
        (_LOAD, 0, 0, _NR),
        *((_EQUAL, to_end - place - 1, 0, number) for place, number in enumerate(calls.values())),
        (_EQUAL, 1, 0, sendto),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, low),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, low + 4),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install() -> int:
    """Put the calling thread, and whatever it starts, under the filter; return the listener's fd.

    From here on each of the calls waits for an answer, those of this very thread too. Needs SYS_ADMIN in its user namespace, or
    no_new_privs. A signal that is not deadly does not disturb a thread that waits.
    """
    code = program()
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(code) // 8, ctypes.addressof(buffer))
    flags = ctypes.c_uint(_NEW_LISTENER | _WAIT_KILLABLE)
    number = ctypes.c_long(_SECCOMP[os.uname().machine])
    result = _libc.syscall(number, ctypes.c_uint(_SET_MODE_FILTER), flags, ctypes.byref(filter_))
    return int(checked(result, "seccomp listener"))


class Listener:
    """The listener's side. Owns the fd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._zeros = bytes(_NOTIFICATION.size)
        with suppress(OSError):  # Linux before 6.6
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)  # the two take turns: let them do so on one CPU

    def receive(self) -> Notification | None:
        """Take what can be read; None if whoever asked is gone. OSError when it cannot be done at all."""
        self._buffer[:] = self._zeros
        try:
            fcntl.ioctl(self.fd, _RECEIVE, self._buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return Notification._make(_NOTIFICATION.unpack(self._buffer))

    def is_valid(self, asked: Notification) -> bool:
        """Whether who asked still waits, so that what was read of it was its own."""
        try:
            fcntl.ioctl(self.fd, _VALID, _ID.pack(asked.id))
        except OSError:
            return False
        return True

    def go_on(self, asked: Notification) -> bool:
        """Let it do what it wants. False if it is gone."""
        try:
            fcntl.ioctl(self.fd, _SEND, _RESPONSE.pack(asked.id, 0, 0, _CONTINUE))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def close(self) -> None:
        """From here on whoever asks is told that there is no such call."""
        os.close(self.fd)
