"""What evidence is worth, and which goes first: pure."""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from hermes.store.pruning import SessionRow

GRACE = 7 * 86400.0
BULK_BYTES = 64 * 2**20
"""A session that moved as much is bulk: a flood, or a transfer. There is little in each of its bytes."""


class Value(enum.IntEnum):
    """What there is to learn from a connection. Its number says how many times as long as a `KNOCK` it is kept."""

    KNOCK = 1
    """Never let in, or about no connection at all."""
    IDLE = 2
    """Let in; ran no command, typed and sent nothing."""
    BULK = 4
    """Did something, at great length (`BULK_BYTES`)."""
    ACTED = 16
    """Ran commands, typed, or brought files."""


def value(session: SessionRow | None) -> Value:
    """Return what a session is worth. None: the journal does not know it, so it may be worth all."""
    if session is None or session.unknown:
        return Value.ACTED
    if not session.commands and not session.bytes_in:
        return Value.IDLE
    return Value.BULK if session.bytes_in + session.bytes_out >= BULK_BYTES else Value.ACTED


class Candidate(NamedTuple):
    """Something that could go: what it is worth, its age in seconds, and where it is."""

    value: Value
    age: float
    place: str = ""


def first_to_go(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return which goes first: the oldest, for what it is worth.

    Age counts as if everything were GRACE older. So within weeks the least valuable goes first, whatever its age; and what was
    done seven weeks before goes before what is new and idle.
    """
    return max(candidates, key=lambda one: ((max(one.age, 0.0) + GRACE) / one.value, -one.value, one.age), default=None)
