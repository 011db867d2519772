"""The broker's facts on their way to the front."""

import msgspec

from hermes.container.messages import BrokerEvent
from hermes.events import Event

MAX_TEXT = 2000
"""Characters of a field; an engine's error may be longer, a packet may not."""


def fact(event: Event) -> BrokerEvent:
    """The event as the broker socket carries it; fields that are None are left out."""
    fields = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in msgspec.structs.asdict(event).items()
        if value is not None
    }
    return BrokerEvent(kind=event.tag(), fields=fields)
