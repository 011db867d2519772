"""What the pool is to begin next, decided from numbers alone."""

from typing import NamedTuple


class Plan(NamedTuple):
    """What to begin now."""

    create: int
    destroy: int


def plan(
    *,
    size: int,
    concurrency: int,
    max_stopping: int,
    warm: int,
    creating: int,
    waiting: int,
    stopping: int,
    destroying: int,
    failing: bool,
    paused: bool,
) -> Plan:
    """Decide how many creations and removals to begin.

    Each waiting session wants a box besides the `size` warm ones. While the engine fails there is one creation at a time, and
    none while `paused`. Removals make way for creations as long as few boxes (no more than `size + concurrency`) wait for
    theirs; creations make way for removals when more than `max_stopping` do.
    """
    short = max(0, size + waiting - warm - creating)
    room = 0 if paused or stopping > max_stopping else (1 if failing else concurrency) - creating
    slots = 1 if short and stopping <= size + concurrency else concurrency
    return Plan(create=max(0, min(short, room)), destroy=max(0, min(stopping, slots - destroying)))
