"""The zygote's process: small, and of no use against the host."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from hermes.broker.policy import Policy
from hermes.broker.zygote import Zygote
from hermes.config.models import LimitsConfig, SecurityConfig
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
