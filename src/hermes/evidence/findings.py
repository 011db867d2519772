"""What a look at sealed evidence finds, and how much it looked at."""

import enum

import msgspec


class State(enum.StrEnum):
    """What was found of something."""

    CHANGED = "changed"
    """It is not what was sealed."""
    MISSING = "missing"
    """It is gone, and nothing says why."""
    ADDED = "added"
    """It was not there when its session was sealed."""
    REMOVED = "removed"
    """Retention removed it, which is told of in the journal."""
    NOTE = "note"
    """It can be neither proven nor refuted."""

    @property
    def is_wrong(self) -> bool:
        """Whether somebody, or a fault, has done what Hermes does not do."""
        return self not in (State.REMOVED, State.NOTE)


class Finding(msgspec.Struct, frozen=True):
    """One thing that was found. `what`: `manifest`, `journal`, `event`, `session`, `recording`, `artifact` or `file`."""

    state: State
    what: str
    which: str
    detail: str


class Summary(msgspec.Struct):
    """How much was looked at."""

    head: str = ""
    """SHA-256 of the chain's last manifest: who notes it elsewhere can tell later whether the chain was cut or made anew."""
    sequence: int = 0
    """The number of that manifest."""
    manifests: int = 0
    sessions: int = 0
    """Sessions whose events are those that were sealed."""
    files: int = 0
    """Files of recordings that were read."""
    artifacts: int = 0
    """Kept files that were read."""
    events: int = 0
    """Events in the journal."""
    unsealed: int = 0
    """Events since the last manifest: no manifest covers them yet."""
    unproven: int = 0
    """Events in ranges of which retention has removed some: only those of sessions are proven by these."""
    removed_events: int = 0
    """Ids whose events retention removed."""
    removed_sessions: int = 0
    removed_recordings: int = 0
    elsewhere: int = 0
    """Sealed events of sessions that are in another journal, kept aside as damaged."""


def changed(what: str, which: str, detail: str) -> Finding:
    """Something is not what was sealed."""
    return Finding(State.CHANGED, what, which, detail)


def missing(what: str, which: str, detail: str) -> Finding:
    """Something is gone."""
    return Finding(State.MISSING, what, which, detail)


def added(what: str, which: str, detail: str) -> Finding:
    """Something is there that was not."""
    return Finding(State.ADDED, what, which, detail)


def removed(what: str, which: str, detail: str) -> Finding:
    """Retention removed something."""
    return Finding(State.REMOVED, what, which, detail)


def note(what: str, which: str, detail: str) -> Finding:
    """Something cannot be told."""
    return Finding(State.NOTE, what, which, detail)
