"""What commands that read the index share: opening it, and saying what it does not have."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from hermes.analysis.reader import IndexReader
from hermes.cli.console import err
from hermes.cli.privileges import become_owner
from hermes.cli.words import when
from hermes.config import Settings
from hermes.errors import JournalError
from hermes.store.follow import Follower

BEHIND = 1000
"""Events that the index may be behind the journal before that is said."""


@contextmanager
def opened(settings: Settings) -> Iterator[IndexReader]:
    """The index, read as its owner; on standard error, how far it is behind, and how much could not be analysed."""
    become_owner(settings)
    with IndexReader(settings.index_path) as index:
        follower = Follower(settings.journal_path, after=index.position)
        with suppress(JournalError):  # the index can be searched without it
            if (lag := follower.lag) > BEHIND:
                err.print(f"The index is {lag} events behind the journal.", soft_wrap=True)
        follower.close()
        if left_out := sum(index.skipped.values()):
            err.print(f"{left_out} events could not be analysed (the log names them).", soft_wrap=True)
        yield index


def moments(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """The two bounds of time that a command was given."""
    now = datetime.now(UTC)
    return (
        None if since is None else when(since, now),
        None if until is None else when(until, now, "--until"),
    )
