"""The quick set, between a warm pool and a listening sensor: whatever does not hold keeps the sensor from listening."""

from collections.abc import Callable

import structlog

from hermes import events
from hermes.broker import image
from hermes.broker.engines.base import Engine
from hermes.broker.facts import fact
from hermes.broker.launcher import runtime_dir
from hermes.broker.pool import Pool
from hermes.broker.verify import runner
from hermes.config import Settings
from hermes.container.messages import BrokerEvent
from hermes.errors import ImageError

log = structlog.get_logger(__name__)


async def before_listening(
    settings: Settings, engine: Engine, pool: Pool, emit: Callable[[BrokerEvent], None], report: Callable[[str], None]
) -> None:
    """Attack a box of the pool with the quick set. ContainmentError, which says what got through, if anything did."""
    report("progress attacking a box of its own")
    found = await runner.verify(
        pool,
        engine,
        settings.container_pool,
        image_digest=digest_of(settings),
        secret_paths=secret_paths(settings),
    )
    for warning in found.warnings:
        log.warning(warning)
    runner.require(found)
    report(f"progress {len(found.probes)} attacks held in {found.seconds:.1f} s")
    emit(
        fact(
            events.SensorVerified(
                probes=len(found.probes),
                seconds=found.seconds,
                engine=found.engine,
                image=found.image,
                policy=found.policy,
                kernel=found.kernel,
            )
        )
    )


def digest_of(settings: Settings) -> str:
    """The digest of the target image's definition; empty for one that only Docker knows."""
    try:
        return image.find(settings.container_pool.image).digest
    except ImageError:
        return ""


def secret_paths(settings: Settings) -> tuple[str, ...]:
    """What of the host must not be named in a box."""
    return str(settings.data_dir), str(runtime_dir(settings.data_dir))
