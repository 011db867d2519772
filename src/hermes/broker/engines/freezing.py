"""Stopping every process of a box where it is, and letting them go on, by its cgroup."""

import asyncio

from hermes.broker.cgroups import BoxCgroup
from hermes.errors import EngineError


async def set_frozen(cgroup: BoxCgroup, frozen: bool, *, patience: float) -> None:
    """Return when it is so. `EngineError` after `patience` seconds, or if there is no freezer."""
    tries = 0
    try:
        async with asyncio.timeout(patience):
            cgroup.freeze(frozen)
            while cgroup.is_frozen() != frozen:
                tries += 1
                if frozen and tries % 50 == 0:
                    # Version 1 can hang while processes come and go; letting go for a moment helps (runc does the same).
                    cgroup.freeze(False)
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.001)
                cgroup.freeze(frozen)
    except OSError as error:
        raise EngineError(f"cannot {'freeze' if frozen else 'thaw'} {cgroup.name}: {str(error) or 'too slow'}") from error
