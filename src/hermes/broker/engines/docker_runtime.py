"""The OCI runtime by which a Docker daemon makes containers: whether it is there, and whether it is gVisor."""

import signal
from contextlib import suppress
from typing import Any

from aiodocker import Docker

from hermes.broker.oci import RUNSC_FLAGS
from hermes.errors import EngineError

_NEEDED = ("--overlay2=none", "--file-access=shared")
"""Without these, gVisor keeps what an attacker writes in its memory, and nothing of it could be kept."""


async def is_gvisor(docker: Docker, wanted: str) -> bool:
    """Whether containers of this runtime (`auto`: the daemon's default) are gVisor's. EngineError if the daemon cannot make them.

    Raises what aiodocker does.
    """
    info = await docker.system.info()
    known: dict[str, Any] = info.get("Runtimes") or {}
    name = str(info.get("DefaultRuntime", "runc")) if wanted == "auto" else wanted
    runtime = known.get(name)
    if runtime is None:
        raise EngineError(f"docker: the daemon knows no runtime {name}, only {', '.join(sorted(known))}; {_remedy(name)}")
    # Newer daemons have a shim in place of a path, and its options where they cannot be read.
    where = str(runtime.get("path") or runtime.get("runtimeType") or "")
    if "runsc" not in f"{name} {where}":
        return False
    given = runtime.get("runtimeArgs") or ()
    if runtime.get("path") and (missing := [flag for flag in _NEEDED if flag not in given]):
        raise EngineError(f"docker: the runtime {name} lacks {' '.join(missing)}; {_remedy(name)}")
    return True


def end_sandbox(pidfd: int) -> None:
    """End a container of gVisor's, whose sandbox is the process of this pidfd: a busy one answers nobody for a minute."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _remedy(name: str) -> str:
    if name != "runsc":
        return "add it to /etc/docker/daemon.json and reload the daemon, or set container_pool.runtime to auto"
    arguments = ", ".join(f'"{flag}"' for flag in RUNSC_FLAGS)
    entry = f'{{"runtimes": {{"runsc": {{"path": "/usr/bin/runsc", "runtimeArgs": [{arguments}]}}}}}}'
    return f"have {entry} in /etc/docker/daemon.json and run: systemctl reload docker"
