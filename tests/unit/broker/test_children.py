"""The launcher's children: their lines, their ends, and the orphans they leave."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker.children import LINE_BYTES, LINES, Child, Children, environment

PATIENCE = 20.0

CHILD = """
import fcntl, os, signal, sys, time
settings, status = (int(sys.argv[sys.argv.index(name) + 1]) for name in ("--settings", "--status"))
what = os.read(settings, 100).decode()
os.write(status, b"progress one\\npro")
os.write(status, b"gress two\\nready " + what.encode() + b"\\n")
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(status, b"ignoring\\n")
if what == "floods":
    os.write(status, b"x" * 1_000_000 + b"\\n" + b"y\\n" * 1000)
if what == "about itself":
    tty = os.isatty(1) and os.isatty(2)
    reads = [os.get_blocking(fd) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY for fd in (1, 2)]
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        controls = True
    except OSError:
        controls = False
    leads = os.getsid(0) == os.getpid()
    facts = [tty, any(reads), controls, leads, os.getcwd(), "" in sys.path or os.getcwd() in sys.path, "SECRET" in os.environ]
    os.write(status, repr(facts).encode() + b"\\n")
if what == "ends":
    sys.exit(3)
while True:
    time.sleep(1)
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    """A module to run as a child of `family`."""
    (tmp_path / "a_child.py").write_text(CHILD)
    return "a_child"


@pytest_asyncio.fixture
async def family(tmp_path: Path) -> Children:
    children = Children({**environment(os.environ), "PYTHONPATH": str(tmp_path)})
    children.watch()
    return children


def start(children: Children, module: str, what: str) -> Child:
    settings = os.memfd_create("settings")
    os.write(settings, what.encode())
    os.lseek(settings, 0, os.SEEK_SET)
    try:
        return children.start("child", [module], [("--settings", settings)])
    finally:
        os.close(settings)


async def lines_of(child: Child, last: str) -> list[str]:
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while not lines or lines[-1] != last:
            lines.append(await child.lines.get())
    return lines


@pytest.mark.asyncio
async def test_lines_come_whole_and_the_end_is_known(module: str, family: Children) -> None:
    child = start(family, module, "ends")
    assert await lines_of(child, "ready ends") == ["progress one", "progress two", "ready ends"]
    await asyncio.wait_for(child.ended.wait(), PATIENCE)
    assert (child.code, child.how) == (3, "exit status 3")


@pytest.mark.asyncio
async def test_asked_to_end(module: str, family: Children) -> None:
    child = start(family, module, "stays")
    await lines_of(child, "ready stays")
    await asyncio.wait_for(family.end(child, patience=PATIENCE, log=pytest.fail), PATIENCE)
    assert child.how == "killed by SIGTERM"
    await family.end(child, patience=PATIENCE, log=pytest.fail)


@pytest.mark.asyncio
async def test_made_to_end(module: str, family: Children) -> None:
    child = start(family, module, "stubborn")
    await lines_of(child, "ignoring")
    said: list[str] = []
    await asyncio.wait_for(family.end(child, patience=0.05, log=said.append), PATIENCE)
    assert child.code == -signal.SIGKILL
    assert said == ["the child does not end: killing it"]


@pytest.mark.asyncio
async def test_what_is_not_its_own_child_is_reaped_too(module: str, family: Children) -> None:
    child = start(family, module, "stays")
    stranger = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    async with asyncio.timeout(PATIENCE):
        while Path(f"/proc/{stranger}").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await family.end(child, patience=PATIENCE, log=pytest.fail)


@pytest.mark.asyncio
async def test_a_child_cannot_type_into_the_terminal_it_writes_to(
    module: str, family: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    ours, terminal = pty.openpty()
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(terminal, 1)
        os.dup2(terminal, 2)
        child = start(family, module, "about itself")
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for fd in (*kept, terminal):
            os.close(fd)
    last = repr([True, False, False, True, "/", False, False])
    assert (await lines_of(child, last))[-1] == last
    await family.end(child, patience=PATIENCE, log=pytest.fail)
    os.close(ours)


@pytest.mark.asyncio
async def test_what_a_child_says_is_bounded(module: str, family: Children) -> None:
    child = start(family, module, "floods")
    async with asyncio.timeout(PATIENCE):
        while not child.lines.full():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        lines = [child.lines.get_nowait() for _ in range(LINES)]
    assert lines[:4] == ["progress one", "progress two", "ready floods", "x" * LINE_BYTES]
    assert set(lines[4:]) == {"y"}
    await family.end(child, patience=PATIENCE, log=pytest.fail)


@pytest.mark.asyncio
async def test_no_orphan_is_left(family: Children) -> None:
    """In a process of its own, whose every child may be killed."""
    code = """
import asyncio, os, subprocess
from pathlib import Path
from hermes.broker import linux
from hermes.broker.children import Children

async def main():
    linux.set_subreaper()
    children = Children(os.environ)
    children.watch()
    # A tree three deep, its root gone and each of the others deaf to SIGTERM.
    script = "trap '' TERM; (sh -c 'sleep 1000 & echo $$; wait' & wait) & sleep 0.2; exit"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as root:
        print(root.stdout.readline().decode().strip())
    await children.end_orphans(patience=20, log=print)
    print(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text() or "none")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE * 2, check=True)
    pid, children = done.stdout.split()
    assert children == "none", done.stderr
    assert not Path(f"/proc/{pid}").exists()


def test_the_environment_of_a_child() -> None:
    own = {"PATH": "/bin", "LC_ALL": "C.UTF-8", "HERMES_DATA_DIR": "/d", "PYTHONPATH": "/x", "AWS_SECRET": "y", "LD_PRELOAD": "z"}
    assert environment(own) == {"PATH": "/bin", "LC_ALL": "C.UTF-8", "HERMES_DATA_DIR": "/d"}
