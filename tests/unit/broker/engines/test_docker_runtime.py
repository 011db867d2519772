"""What a daemon says of its runtimes, and what is made of it."""

import os
import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiodocker import Docker

from hermes.broker.engines.docker_runtime import end_sandbox, is_gvisor
from hermes.broker.oci import RUNSC_FLAGS
from hermes.errors import EngineError

RUNC = {"path": "runc"}
GOOD = {"path": "/usr/bin/runsc", "runtimeArgs": list(RUNSC_FLAGS)}


def daemon(default: str = "runc", **runtimes: dict[str, Any]) -> Docker:
    async def info() -> dict[str, Any]:
        return {"DefaultRuntime": default, "Runtimes": {"runc": RUNC, **runtimes}}

    return cast(Docker, SimpleNamespace(system=SimpleNamespace(info=info)))


@pytest.mark.asyncio
async def test_the_daemons_default_is_taken_for_what_it_is() -> None:
    assert await is_gvisor(daemon(), "auto") is False
    assert await is_gvisor(daemon("runsc", runsc=GOOD), "auto") is True
    assert await is_gvisor(daemon("strict", strict=GOOD), "auto") is True, "whatever it is called"
    assert await is_gvisor(daemon(runsc={"runtimeType": "io.containerd.runsc.v1"}), "runsc") is True


@pytest.mark.asyncio
async def test_a_runtime_the_daemon_does_not_know_is_told_with_the_remedy() -> None:
    with pytest.raises(EngineError, match=r"knows no runtime runsc, only runc.*--overlay2=none.*daemon\.json"):
        await is_gvisor(daemon(), "runsc")
    with pytest.raises(EngineError, match=r"knows no runtime crun"):
        await is_gvisor(daemon(), "crun")


@pytest.mark.asyncio
async def test_one_that_would_lose_the_evidence_is_refused() -> None:
    with pytest.raises(EngineError, match=r"lacks --overlay2=none --file-access=shared.*daemon\.json"):
        await is_gvisor(daemon(runsc={"path": "/usr/bin/runsc"}), "runsc")


def test_a_sandbox_is_ended_whether_or_not_it_still_runs() -> None:
    with subprocess.Popen(["sleep", "1000"]) as sandbox:
        pidfd = os.pidfd_open(sandbox.pid)
        end_sandbox(pidfd)
        assert sandbox.wait(20) == -9
        end_sandbox(pidfd)
        os.close(pidfd)
