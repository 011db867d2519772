"""What a front that was killed had recorded and had not yet stated: the journal is written a moment after the recording.

A session's id begins with the time it was made (12 hex digits of milliseconds), so only those younger than what the journal
says last can be missing in it.
"""

from collections.abc import Iterator
from pathlib import Path

from hermes import events
from hermes.events import from_bytes
from hermes.recording.reader import RecordingUnavailable, channels, session_ids
from hermes.store import JournalReader

OVERLAP_SECONDS = 60.0
"""Sessions that are this much older are looked for too: clocks may be set back."""


def unstated(journal: Path, recordings: Path) -> list[events.Event]:
    """Return what is to be stated of sessions that are recorded and that the journal does not know. Blocks.

    Raises JournalError when the journal cannot be read.
    """
    with JournalReader(journal) as reader:
        last = reader.last_time()
        if last is None:
            return []
        since = int((last.timestamp() - OVERLAP_SECONDS) * 1000)
        try:
            young = [name for name in session_ids(recordings, days=2) if _made(name) >= since]
        except RecordingUnavailable:  # whoever writes there next will say so
            return []
        missing = sorted(reader.unknown(young))
    return [fact for session_id in missing for fact in _facts(recordings, session_id)]


def _made(session_id: str) -> int:
    """Milliseconds since 1970 at which the id was made; 0 for one of another making."""
    try:
        return int(session_id[:12], 16)
    except ValueError:
        return 0


def _facts(recordings: Path, session_id: str) -> Iterator[events.Event]:
    try:
        found = [(channel, channel.facts) for channel in channels(recordings, session_id)]
    except RecordingUnavailable:
        return
    known = [(channel, facts) for channel, facts in found if facts is not None]
    if not known:
        return
    first = known[0][1]
    yield events.SessionRecovered(session_id=session_id, channels=len(known))
    yield events.SessionOpened(
        session_id=session_id, username=first.username, client_version="",
        source_ip=first.source_ip, source_port=first.source_port,
    )  # fmt: skip
    for channel, facts in known:
        yield events.ChannelStarted(
            session_id=session_id,
            channel=facts.channel,
            kind=facts.kind,
            command=None if facts.command is None else from_bytes(facts.command),
            recording=str(channel.cast.relative_to(recordings)),
        )
    yield events.SessionClosed(session_id=session_id, cause="lost", duration=0, channels=len(known), bytes_in=0, bytes_out=0)
