"""The kernel's calls that Python has no name for, each typed and raising `OSError`. With seccomp, the only ctypes in the broker.

Imported by the zygote, so it imports little. Those by which a process gives up power come from `hermes.confine`.
"""

import array
import ctypes
import errno
import os
import socket
import struct

from hermes.confine.kernel import checked, prctl, syscall
from hermes.confine.kernel import last_capability as last_capability
from hermes.confine.kernel import limit_bounding_set as limit_bounding_set
from hermes.confine.kernel import set_capabilities as set_capabilities
from hermes.confine.kernel import set_no_new_privileges as set_no_new_privileges
from hermes.confine.kernel import set_parent_death_signal as set_parent_death_signal
from hermes.confine.kernel import set_seccomp_filter as set_seccomp_filter
from hermes.confine.kernel import set_undumpable as set_undumpable

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
CLONE_FS = 0x00000200

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_OPENAT2 = 437
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x100000

_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
    "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
    "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN",
    "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Every capability by its number, without `CAP_`."""


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Relative names in `data` are looked up from the calling thread's working directory."""
    result = _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode())
    checked(result, f"mount {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2); by default the mount is detached even while it is in use."""
    checked(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def idmapped_clone(source: str, target: str, user_namespace: int) -> None:
    """Mount the tree at `source` read-only on `target`, its owners shifted as the user namespace (an fd) maps them."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = syscall(_OPEN_TREE, f"open_tree {source}", ctypes.c_int(_AT_FDCWD), os.fsencode(source), flags)
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, 0, 0, user_namespace)
        what = f"mount_setattr {source}: Hermes needs Linux 5.19 and a file system with idmapped mounts"
        size = ctypes.c_size_t(len(attributes))
        syscall(_MOUNT_SETATTR, what, ctypes.c_int(tree), b"", ctypes.c_uint(_AT_EMPTY_PATH), attributes, size)
        at, empty = ctypes.c_int(_AT_FDCWD), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        syscall(_MOVE_MOUNT, f"move_mount {target}", ctypes.c_int(tree), b"", at, os.fsencode(target), empty)
    finally:
        os.close(tree)


def open_beneath(directory: int, name: str, flags: int) -> int:
    """openat2(2): open what lies below a directory (an fd), following no link and crossing no mount on the way."""
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
    how = struct.pack("QQQ", flags, 0, resolve)
    return syscall(_OPENAT2, "openat2", ctypes.c_int(directory), os.fsencode(name), how, ctypes.c_size_t(len(how)))


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces `flags` of the process whose pidfd `fd` is."""
    checked(_libc.setns(fd, flags), "setns")


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    checked(_libc.unshare(flags), "unshare")


def private_mounts() -> None:
    """Leave the host's mount namespace: what is mounted from here on is not seen there, and ends with the last process here."""
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_SLAVE)


def set_subreaper() -> None:
    """Become the parent of orphaned descendants."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: bytes) -> None:
    """Set what `ps -o comm` shows: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name[:15])
    checked(_libc.prctl(_PR_SET_NAME, buffer, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl name")


def receive_fds(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """Receive a packet of up to `size` bytes and the at most `count` fds that ride along, none of which survives an exec.

    (`socket.recv_fds` drops its `flags`, so that what it receives would be inherited.)
    """
    fds = array.array("i")
    space = socket.CMSG_SPACE(count * fds.itemsize)
    packet, ancillary, _, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds)


def capability_mask(names: tuple[str, ...]) -> int:
    """The bit mask of capabilities named without `CAP_`."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


def clock_watch() -> int:
    """Return an fd that `clock_was_set` can ask: a timer far in the future that is cancelled when somebody sets the clock."""
    realtime, absolute_and_cancelled = ctypes.c_int(0), ctypes.c_int(1 | 2)
    fd = checked(_libc.timerfd_create(realtime, ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)), "timerfd_create")
    try:
        never = struct.pack("4q", 0, 0, 1 << 40, 0)
        checked(_libc.timerfd_settime(ctypes.c_int(fd), absolute_and_cancelled, never, None), "timerfd_settime")
    except OSError:
        os.close(fd)
        raise
    return fd


def clock_was_set(fd: int) -> bool:
    """Whether the clock was set (not just slewed) since `clock_watch` returned this fd."""
    try:
        os.read(fd, 8)
    except OSError as error:
        return error.errno == errno.ECANCELED
    return True


def timer() -> int:
    """Return an fd that can be read, or `timer_elapsed` asked, once the time that `set_timer` gives it has passed."""
    monotonic = ctypes.c_int(1)
    return checked(_libc.timerfd_create(monotonic, ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)), "timerfd_create")


def set_timer(fd: int, seconds: float | None) -> None:
    """Have it elapse in so many seconds, and not before; None: never."""
    nanoseconds = 0 if seconds is None else max(1, int(seconds * 1e9))
    spec = struct.pack("4q", 0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
    checked(_libc.timerfd_settime(ctypes.c_int(fd), ctypes.c_int(0), spec, None), "timerfd_settime")


def timer_elapsed(fd: int) -> bool:
    """Whether it elapsed since this was asked last."""
    try:
        return bool(os.read(fd, 8))
    except BlockingIOError:
        return False


class ProcessTitle:
    """The command line that `ps` shows for this process: overwrites the memory its arguments lie in.

    Make it before entering another mount namespace: it reads /proc/self/stat.
    """

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
        self._start = int(fields[45])
        self._size = int(fields[46]) - self._start

    def set(self, title: bytes) -> None:
        """Show `title`, cut to the length of the original command line."""
        text = title[: self._size - 1]
        ctypes.memmove(self._start, text.ljust(self._size, b"\0"), self._size)
