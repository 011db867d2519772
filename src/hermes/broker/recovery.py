"""Evidence of boxes that a broker which died had given to sessions: kept as if they had been stopped in good order."""

import time
from collections.abc import Callable

import msgspec
import structlog

from hermes import events
from hermes.broker.engines.base import Engine
from hermes.broker.facts import fact
from hermes.broker.forensics import Facts, Forensics
from hermes.container.messages import BrokerEvent
from hermes.errors import EngineError

log = structlog.get_logger(__name__)


async def recover(engine: Engine, forensics: Forensics, left: list[Facts], *, emit: Callable[[BrokerEvent], None]) -> None:
    """Keep what changed in each box that an earlier run noted and the engine spared, one after the other, and state it.

    `left` is what `forensics.start()` returned. What is not done when this is cancelled, the next start does.
    """
    if not left:
        return
    log.warning("keeping the changes of containers that an earlier run left", count=len(left))
    owned = set(await engine.list_owned())
    for facts in left:
        copied = None
        if facts.container_id in owned:
            # What is there may be half a copy: the box still has it all.
            await forensics.clear(facts.container_id)
            try:
                copied = await engine.recover(facts.container_id, keep=forensics.place(facts.container_id))
            except EngineError as error:
                log.error("changes of a container were not kept", container_id=facts.container_id, reason=str(error))
                emit(fact(events.EngineFailed(engine=engine.name, operation="recover", reason=str(error))))
        kept = await forensics.add(msgspec.structs.replace(facts, stopped=time.time()), copied)
        emit(
            fact(
                events.ContainerStopped(
                    container_id=facts.container_id,
                    session_id=facts.session_id,
                    kept=None if kept is None else str(kept),
                    recovered=True,
                )
            )
        )
        forensics.forget(facts.container_id)
