"""What can be executed, as the kernel is going to find it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.watcher.lookup import Lookup, descriptor_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc").mkdir()
    return tmp_path


@pytest.fixture
def lookup(root: Path) -> Iterator[Lookup]:
    fd = os.open(root, os.O_PATH)
    yield Lookup(fd)
    os.close(fd)


def put(root: Path, name: str, data: bytes, mode: int = 0o755) -> None:
    path = root / name
    path.write_bytes(data)
    path.chmod(mode)


def ask(lookup: Lookup, path: str, cwd: str = "/") -> str | None:
    return lookup.program(os.getpid(), path.encode(), cwd.encode())


def test_a_link_leads_within_the_box(lookup: Lookup, root: Path) -> None:
    put(root, "bin/sh", b"#!/bin/deep\n")
    (root / "etc" / "alternative").symlink_to("/bin/sh")
    (root / "bin" / "out").symlink_to("../../../../../../etc/alternative")
    assert ask(lookup, "/etc/alternative") == "ENOENT", "its interpreter is not there"
    put(root, "bin/deep", b"no program")
    assert ask(lookup, "/etc/alternative") is not None
    assert ask(lookup, "/bin/nothing") == "ENOENT"
    assert ask(lookup, "out", "/bin") == ask(lookup, "/bin/sh")


def test_what_is_no_program_is_told(lookup: Lookup, root: Path) -> None:
    put(root, "bin/text", b"hello\n")
    put(root, "bin/empty", b"")
    put(root, "bin/plain", b"#!/bin/sh\n", 0o644)
    put(root, "bin/nobody", b"#!\n")
    put(root, "bin/arm", b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\0\x28\0" + bytes(200))
    os.mkfifo(root / "bin" / "pipe", 0o755)
    (root / "bin" / "loop").symlink_to("loop")
    found = {name: ask(lookup, f"/bin/{name}") for name in ("text", "empty", "plain", "nobody", "arm", "pipe", "loop", "text/x")}
    expected = {
        "text": "ENOEXEC", "empty": "ENOEXEC", "plain": "EACCES", "nobody": "ENOEXEC", "arm": "ENOEXEC", "pipe": "EACCES",
        "loop": "ELOOP", "text/x": "ENOTDIR",
    }  # fmt: skip
    if os.uname().machine == "aarch64":
        del found["arm"], expected["arm"]
    assert found == expected
    assert ask(lookup, "") == "ENOENT"
    assert ask(lookup, "/bin") == "EACCES"


def test_scripts_of_scripts_end(lookup: Lookup, root: Path) -> None:
    for number in range(8):
        put(root, f"bin/{number}", b"#!/bin/%d\n" % (number + 1))
    assert ask(lookup, "/bin/0") == "ELOOP"


def test_a_changed_file_is_looked_at_again(lookup: Lookup, root: Path) -> None:
    put(root, "bin/x", b"text")
    assert ask(lookup, "/bin/x") == "ENOEXEC"
    put(root, "bin/x", b"#!/bin/none ")
    assert ask(lookup, "/bin/x") == "ENOENT"


def test_this_machines_programs_are_programs() -> None:
    lookup = Lookup(os.open("/", os.O_PATH))
    assert ask(lookup, "/bin/sh") is None
    for name in ("ls", "python3", "env"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=False).stdout.strip()
        if found.startswith("/"):
            assert ask(lookup, found) is None


def test_an_open_file_is_what_it_is(lookup: Lookup) -> None:
    fd = os.memfd_create("x")
    os.write(fd, b"no program")
    os.fchmod(fd, 0o755)
    assert lookup.descriptor(os.getpid(), fd) == "ENOEXEC"
    assert ask(lookup, f"/proc/self/fd/{fd}") == "ENOEXEC"
    assert lookup.at(os.getpid(), fd, b"", b"/") == "ENOEXEC"
    os.close(fd)
    assert lookup.descriptor(os.getpid(), fd) == "EBADF"
    assert lookup.at(os.getpid(), fd, b"x", b"/") == "EBADF"


@pytest.mark.parametrize(
    ("path", "fd"),
    [(b"/proc/self/fd/3", 3), (b"/dev/fd/12", 12), (b"/proc/self/fd/", None), (b"/proc/1/fd/3", None), (b"/dev/fd/3x", None)],
)
def test_a_descriptor_is_known_by_its_path(path: bytes, fd: int | None) -> None:
    assert descriptor_of(path) == fd
