"""The zygote's process: small, and of no use against the host."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hermes.broker.policy import Policy
from hermes.broker.zygote import WARM_UP, Zygote, _warm_up
from hermes.config.models import LimitsConfig, SecurityConfig
from hermes.container.messages import Exited, Failed, Spawn, Spawned, decode_box_request, encode
from hermes.errors import EngineError
from hermes.testing.boxes import eventually

MODULES = """
import sys
from hermes.broker.zygote_main import _stand_in
_stand_in("hermes.container")
import hermes.broker.zygote_process
print(" ".join(sys.modules))
"""


def test_it_loads_little() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", MODULES], capture_output=True, text=True, check=True)
    assert not {"asyncio", "pydantic", "structlog", "ssl", "subprocess", "threading", "logging"} & set(done.stdout.split())


@pytest.mark.asyncio
async def test_it_starts_once_and_ends() -> None:
    zygote = Zygote()
    assert zygote.pid == 0
    await asyncio.gather(zygote.start(), zygote.start())
    pid = zygote.pid
    await zygote.start()
    assert zygote.pid == pid > 0
    await zygote.close()
    assert zygote.pid == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await zygote.close()


@pytest.mark.asyncio
async def test_it_enters_no_process_of_the_host() -> None:
    zygote = Zygote()
    policy = Policy(SecurityConfig(), LimitsConfig())
    try:
        with pytest.raises(EngineError, match="shares its mnt namespace with the host"):
            await zygote.enter(os.getpid(), policy=policy)
        with pytest.raises(EngineError, match="No such process"):
            await zygote.enter(2**22 + 1, policy=policy)
        assert zygote.pid, "a refusal does not end it"
    finally:
        await zygote.close()


async def _ended(zygote: Zygote) -> bool:
    return zygote.pid == 0


@pytest.mark.asyncio
async def test_a_killed_one_is_replaced() -> None:
    zygote = Zygote()
    try:
        await zygote.start()
        first = zygote.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: _ended(zygote))
        await zygote.start()
        assert zygote.pid not in (0, first)
    finally:
        await zygote.close()


@pytest.mark.asyncio
async def test_one_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    zygote = Zygote()
    try:
        await zygote.start()
        os.kill(zygote.pid, signal.SIGSTOP)
        monkeypatch.setattr("hermes.broker.zygote._ANSWER_TIMEOUT", 0.05)
        with pytest.raises(EngineError, match="does not answer: too slow"):
            await zygote.user_namespace(1 << 27)
    finally:
        await zygote.close()


# ---- the first process in a fresh box


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a box socket, and the spawner's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.asyncio
async def test_the_warm_up_ends_with_its_process_and_leaves_nothing_open(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    reader, writer = os.pipe()
    socket.send_fds(theirs, [encode(Spawned(id=WARM_UP, pid=7))], [writer, writer, writer])
    os.close(writer)
    theirs.send(encode(Exited(id=WARM_UP, status=0)))
    await _warm_up(ours)
    asked = decode_box_request(theirs.recv(65536))
    assert isinstance(asked, Spawn)
    assert (asked.id, asked.user, asked.argv[0]) == (WARM_UP, "root", b"/bin/bash")
    assert os.read(reader, 1) == b"", "nobody holds its fds"
    os.close(reader)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


@pytest.mark.asyncio
async def test_a_box_without_bash_is_as_good(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.send(encode(Failed(id=WARM_UP, error="No such file or directory")))
    await _warm_up(ours)


@pytest.mark.asyncio
@pytest.mark.parametrize("answered", [False, True], ids=["silent", "never-ending"])
async def test_a_spawner_that_does_not_answer(
    answered: bool, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    if answered:
        theirs.send(encode(Spawned(id=WARM_UP, pid=7)))
    monkeypatch.setattr("hermes.broker.zygote._WARM_UP_TIMEOUT", 0.05)
    with pytest.raises(EngineError, match="does not answer"):
        await _warm_up(ours)


@pytest.mark.asyncio
async def test_a_spawner_that_talks_nonsense(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.send(b"nonsense")
    with pytest.raises(EngineError, match="does not answer"):
        await _warm_up(ours)


@pytest.mark.asyncio
async def test_a_spawner_that_died_before_or_while_it_was_asked(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EngineError, match="died"):
        await _warm_up(ours)
    theirs.close()
    with pytest.raises(EngineError):
        await _warm_up(ours)


@pytest.mark.root
@pytest.mark.asyncio
async def test_what_it_runs_from_cannot_be_written_through_it() -> None:
    zygote = Zygote()
    await zygote.start()
    try:
        assert os.statvfs(f"/proc/{zygote.pid}/exe").f_flag & os.ST_RDONLY
        assert not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY
    finally:
        await zygote.close()
