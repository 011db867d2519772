"""Removes what a Hermes that was killed left of its boxes."""

import contextlib
import shutil
import time
from pathlib import Path

import structlog

from hermes.broker import cgroups
from hermes.broker.boxfs import unmount_below
from hermes.broker.cgroups import BoxCgroup

log = structlog.get_logger(__name__)

_END_TIMEOUT = 10.0


def sweep(instance: str, runtime_dir: Path) -> None:
    """Kill every box of the instance and remove their cgroups, mounts and runtime state. For use when no engine runs. Blocking.

    What attackers changed on disk is left to `LocalEngine.start`. Whatever cannot be removed is logged, not raised.
    """
    parent = f"/hermes-{instance}"
    trees = cgroups.hierarchies()
    groups = [BoxCgroup(f"{parent}/{name}", trees) for name in cgroups.children(parent, trees)]
    for group in groups:
        with contextlib.suppress(OSError):
            group.freeze(False)
        group.kill()
    deadline = time.monotonic() + _END_TIMEOUT
    for group in [*groups, BoxCgroup(parent, trees)]:
        while not group.remove():
            if time.monotonic() > deadline:
                log.error("cgroup could not be removed", cgroup=group.name, pids=sorted(group.pids()))
                break
            time.sleep(0.005)
            group.kill()
    try:
        unmount_below(runtime_dir)
    except OSError as error:
        log.error("boxes could not be unmounted", reason=str(error))
        return
    for name in ("boxes", "runtime"):
        shutil.rmtree(runtime_dir / name, ignore_errors=True)
