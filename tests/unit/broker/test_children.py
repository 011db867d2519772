"""The launcher's children: their lines, their ends, and the orphans they leave."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hermes.broker.children import Child, Children

PATIENCE = 20.0

CHILD = """
import os, signal, sys, time
settings, status = (int(sys.argv[sys.argv.index(name) + 1]) for name in ("--settings", "--status"))
what = os.read(settings, 100).decode()
os.write(status, b"progress one\\npro")
os.write(status, b"gress two\\nready " + what.encode() + b"\\n")
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(status, b"ignoring\\n")
if what == "ends":
    sys.exit(3)
while True:
    time.sleep(1)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module to run as a child."""
    (tmp_path / "a_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_child"


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
async def test_lines_come_whole_and_the_end_is_known(module: str) -> None:
    children = Children()
    children.watch()
    child = start(children, module, "ends")
    assert await lines_of(child, "ready ends") == ["progress one", "progress two", "ready ends"]
    await asyncio.wait_for(child.ended.wait(), PATIENCE)
    assert (child.code, child.how) == (3, "exit status 3")


@pytest.mark.asyncio
async def test_asked_to_end(module: str) -> None:
    children = Children()
    children.watch()
    child = start(children, module, "stays")
    await lines_of(child, "ready stays")
    await asyncio.wait_for(children.end(child, patience=PATIENCE, log=pytest.fail), PATIENCE)
    assert child.how == "killed by SIGTERM"
    await children.end(child, patience=PATIENCE, log=pytest.fail)


@pytest.mark.asyncio
async def test_made_to_end(module: str) -> None:
    children = Children()
    children.watch()
    child = start(children, module, "stubborn")
    await lines_of(child, "ignoring")
    said: list[str] = []
    await asyncio.wait_for(children.end(child, patience=0.05, log=said.append), PATIENCE)
    assert child.code == -signal.SIGKILL
    assert said == ["the child does not end: killing it"]


@pytest.mark.asyncio
async def test_what_is_not_its_own_child_is_reaped_too(module: str) -> None:
    children = Children()
    children.watch()
    child = start(children, module, "stays")
    stranger = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    async with asyncio.timeout(PATIENCE):
        while Path(f"/proc/{stranger}").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await children.end(child, patience=PATIENCE, log=pytest.fail)
