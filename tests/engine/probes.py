"""Run inside a box by `test_local`: tries system calls and prints what the kernel said, as JSON. x86_64 only."""

import ctypes
import errno
import json
import mmap
import os

libc = ctypes.CDLL(None, use_errno=True)
HIGH = 1 << 40


def call(number: int, *arguments: int) -> str:
    """The name of the error, or `ok`."""
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def forked(number: int, *arguments: int) -> str:
    """The same in a child, which may die of it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, call(number, *arguments).encode())
        os._exit(0)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return os.read(reader, 100).decode() if status == 0 else f"signal {-status}"


def i386_getpid() -> str:
    """getpid as a 32-bit program calls it: int 0x80."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return f"signal {-os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


found = {
    "unshare": call(272, 0x10000000),
    "setns": call(308, 0, 0),
    "mount": call(165, 0, 0, 0, 0, 0),
    "umount2": call(166, 0, 0),
    "keyctl": call(250, 0, 0),
    "bpf": call(321, 0, 0, 0),
    "perf_event_open": call(298, 0, 0, 0, 0, 0),
    "userfaultfd": call(323, 0),
    "io_uring_setup": call(425, 1, 0),
    "process_vm_writev": call(311, os.getpid(), 0, 0, 0, 0, 0),
    "pidfd_getfd": call(438, 0, 0, 0),
    "fsopen": call(430, 0, 0),
    "open_by_handle_at": call(304, 0, 0, 0),
    "syslog": call(103, 3, 0, 0),
    "reboot": call(169, 0, 0, 0, 0),
    "clone with a namespace": call(56, 0x10000011, 0, 0, 0, 0),
    "clone3": call(435, 0, 0),
    "a system call of the future": call(999),
    "personality: PER_LINUX32": call(135, 8),
    "personality: query": call(135, 0xFFFFFFFF),
    "sync": call(162),
    "x32 getpid": forked(0x40000000 + 39),
    "i386 getpid": i386_getpid(),
    "socketpair: AF_INET": call(53, 2, 1, 0, 0),
    "socket: AF_NETLINK with a high bit": call(41, 16 | HIGH, 3, 0),
}
families = {
    "AF_UNIX": (1, 1, 0), "AF_INET": (2, 1, 0), "AF_INET6": (10, 2, 0), "TCP": (10, 0o2000001, 6), "UDP": (2, 0o4002, 17),
    "raw ICMP": (2, 3, 1), "raw ICMPv6": (10, 3, 58), "SCTP": (2, 1, 132), "DCCP": (2, 6, 33), "L2TP": (2, 2, 115),
    "MPTCP": (10, 1, 262), "SOCK_PACKET": (2, 10, 768), "AF_KEY": (15, 3, 2), "NETLINK_ROUTE": (16, 3, 0),
    "NETLINK_AUDIT": (16, 3, 9), "NETLINK_NETFILTER": (16, 3, 12), "AF_PACKET": (17, 3, 0), "AF_CAN": (29, 3, 1),
    "AF_TIPC": (30, 1, 0), "AF_BLUETOOTH": (31, 3, 1), "AF_ALG": (38, 5, 0), "AF_VSOCK": (40, 1, 0), "AF_XDP": (44, 3, 0),
}  # fmt: skip
found |= {f"socket: {name}": call(41, *arguments) for name, arguments in families.items()}
word = mmap.mmap(-1, mmap.PAGESIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(word))
ioctls = {
    "TIOCSTI": 0x5412,
    "TIOCSTI with a high bit": 0x5412 | HIGH,
    "TIOCLINUX": 0x541C,
    "TIOCSETD": 0x5423,
    "FIONREAD": 0x541B,
}
reader, writer = os.pipe()
found |= {f"ioctl: {name}": call(16, reader, command, address) for name, command in ioctls.items()}
print(json.dumps(found))
