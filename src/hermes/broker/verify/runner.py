"""Runs probes against boxes of a pool: one after the other, each bounded, none able to end the run."""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

from hermes.broker.engines.base import Box, Engine
from hermes.broker.policy import Policy
from hermes.broker.pool import Pool
from hermes.broker.verify import report
from hermes.broker.verify.box import Target
from hermes.broker.verify.canaries import Canaries
from hermes.broker.verify.host import Host
from hermes.broker.verify.probe import ALL, Attack, Breach, Probe, asks_kernel
from hermes.broker.verify.probes import __all__ as GROUPS
from hermes.broker.verify.report import Report, Verdict
from hermes.config.models import ContainerPoolConfig
from hermes.errors import ContainmentError, HermesError, MachineError

PATIENCE = 120.0
"""Seconds that one probe may take."""
SESSION = "verify"
"""The session that boxes under attack are allocated for."""
GVISOR = "runsc"
NOT_MADE = "could not be tried: "

Progress = Callable[[Verdict], None]


def chosen(*, quick: bool) -> list[Probe]:
    """The probes of a run, in order."""
    assert GROUPS
    return [one for one in ALL.values() if one.quick or not quick]


async def attempt(probe: Probe, attack: Attack) -> Verdict:
    """Make one attack and say how it ended."""
    began = time.monotonic()
    held = False
    try:
        async with asyncio.timeout(PATIENCE):
            detail = await probe.attempt(attack)
        held = True
    except Breach as breach:
        detail = str(breach)
        seen = [*attack.host.changes(), *attack.host.canaries.touched()]
        if attack.own_kernel and asks_kernel(probe) and not seen:
            held, detail = True, f"let by the box's own kernel, and nothing of it seen on the host: {breach}"
    except TimeoutError:
        detail = f"{NOT_MADE}no end within {PATIENCE:g} s"
    except (HermesError, OSError) as error:
        detail = f"{NOT_MADE}{error}"
    except ExceptionGroup as group:
        known, unknown = group.split((HermesError, OSError, TimeoutError))
        if unknown is not None or known is None:
            raise
        detail = f"{NOT_MADE}{known.exceptions[0]}"
    seconds = round(time.monotonic() - began, 4)
    return Verdict(name=probe.name, group=probe.group, tries=probe.tries, held=held, detail=detail, seconds=seconds)


async def run(probes: Iterable[Probe], attack: Attack, progress: Progress | None = None) -> list[Verdict]:
    """Make the attacks in order."""
    verdicts = []
    for probe in probes:
        verdict = await attempt(probe, attack)
        verdicts.append(verdict)
        if progress is not None:
            progress(verdict)
    return verdicts


@contextlib.contextmanager
def observed(secret_paths: Iterable[str], *, full: bool) -> Iterator[Host]:
    """The host, with canaries placed. MachineError if they cannot be."""
    try:
        host = Host(Canaries.place(), tuple(secret_paths), full=full)
    except OSError as error:
        raise MachineError(f"the host cannot be observed: {error.strerror}") from error
    try:
        yield host
    finally:
        host.close()


@contextlib.asynccontextmanager
async def borrowed(pool: Pool, session: str = SESSION, *, own_kernel: bool = False) -> AsyncIterator[Target]:
    """A warm box of the pool, given back after; nothing of it is kept. With a kernel of its own, its processes are not ours."""
    held = await pool.allocate(session)
    try:
        box = Box(held.box.id) if own_kernel else held.box
        target = Target.over(box, held.sock)
        try:
            yield target
        finally:
            target.close()
    finally:
        pool.release(session, keep=False)


async def verify(
    pool: Pool,
    engine: Engine,
    config: ContainerPoolConfig,
    *,
    image_digest: str,
    secret_paths: Iterable[str],
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Attack boxes of a warm pool and report. With `keep`, a directory of root's, everything is tried; else the quick set."""
    quick = keep is None
    began = time.time()
    policy = Policy(config.security, config.limits)
    own_kernel = GVISOR in engine.runtime
    with observed(secret_paths, full=not quick) as host:
        host.directory = keep or host.directory
        async with borrowed(pool, own_kernel=own_kernel) as target:
            attack = Attack(target, host, config, policy, own_kernel=own_kernel)
            if keep is not None:
                attack.boxes = lambda: borrowed(pool, f"{SESSION}-{secrets.token_hex(4)}", own_kernel=own_kernel)
                attack.take_down = functools.partial(_take_down, engine, keep)
            verdicts = await run(chosen(quick=quick), attack, progress)
    return report.make(
        verdicts,
        began=began,
        quick=quick,
        engine=engine.name,
        runtime=engine.runtime,
        image=config.image,
        image_digest=image_digest,
        policy=policy,
        warnings=attack.warnings,
    )


async def _take_down(engine: Engine, directory: Path, target: Target) -> Path:
    place = directory / target.box.id
    await engine.destroy(target.box, keep=place)
    return place


def require(found: Report) -> None:
    """Raise ContainmentError unless everything held."""
    if not found.held:
        raise ContainmentError(found.summary())
