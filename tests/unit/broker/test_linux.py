"""The kernel's calls, as far as they can be tried without giving up anything."""

import array
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hermes.broker import linux


def test_capability_masks() -> None:
    assert linux.capability_mask(()) == 0
    assert linux.capability_mask(("CHOWN", "SYS_ADMIN", "CHECKPOINT_RESTORE")) == 1 | 1 << 21 | 1 << 40
    with pytest.raises(ValueError):
        linux.capability_mask(("NO_SUCH",))


def test_every_capability_of_this_kernel_is_known() -> None:
    assert linux.last_capability() == int(Path("/proc/sys/kernel/cap_last_cap").read_text()) < len(linux.CAPABILITIES)


def test_errors_say_what_failed() -> None:
    with pytest.raises(OSError, match="umount /no/such/place") as caught:
        linux.umount("/no/such/place")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)


def test_received_descriptors_do_not_survive_an_exec(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, (tmp_path / "file").open("w") as file:
        socket.send_fds(ours, [b"two"], [file.fileno(), file.fileno()])
        packet, fds = linux.receive_fds(theirs, 100, 2)
        assert packet == b"two"
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
        for fd in fds:
            os.close(fd)
        ours.send(b"none")
        assert linux.receive_fds(theirs, 100, 2) == (b"none", [])


def test_more_descriptors_than_wanted_are_not_kept(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, (tmp_path / "file").open("w") as file:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * 50))])
        _, fds = linux.receive_fds(theirs, 100, 2)
        for fd in fds:
            os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


TITLE = """
from hermes.broker import linux
title = linux.ProcessTitle()
for text in (b"x" * 10000, b"sshd: root@pts/0"):
    title.set(text)
    print(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0").decode())
linux.set_name(b"a name longer than fifteen")
print(open("/proc/self/comm").read().strip())
"""


def test_process_title() -> None:
    done = subprocess.run([sys.executable, "-c", TITLE], capture_output=True, text=True, check=True)
    long, short, name = done.stdout.splitlines()
    assert set(long) == {"x"}
    assert short == "sshd: root@pts/0"
    assert name == "a name longer t"
