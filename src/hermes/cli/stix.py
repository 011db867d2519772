"""`hermes stix`: a session or a campaign for other tools, as a bundle of STIX 2.1.

The stix2 library takes a third of a second to import: only these commands do.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from hermes.analysis import findings
from hermes.analysis.reader import IndexReader
from hermes.analysis.rules_match import catalogue
from hermes.cli.console import ConfigOption, SetOption, fail, load_settings, reporting
from hermes.cli.indexed import opened
from hermes.errors import JournalError
from hermes.store import JournalReader

if TYPE_CHECKING:
    from hermes.analysis.stix import Dossier

MAX_SESSIONS = 200
"""Of a campaign, the newest."""

app = typer.Typer(no_args_is_help=True, help="Export a session or a campaign as STIX 2.1.")
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to standard output; it must not exist.")
]


@app.command()
@reporting()
def session(
    session: Annotated[str, typer.Argument(metavar="ID", help="Session id, or a beginning that only one session has.")],
    output: OutputOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Export one session: who and from where, what was run, fetched and brought, and which techniques that shows."""
    settings = load_settings(config, overrides)
    from hermes.analysis.stix import Bundle

    names = catalogue()
    with _created(output) as target, opened(settings) as index, JournalReader(settings.journal_path) as journal:
        dossier = _dossier(index, journal, session)
        bundle = Bundle(dossier.session.sensor, names)
        bundle.session(dossier)
        target.write(bundle.serialize() + "\n")


@app.command()
@reporting()
def campaign(
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Name of the campaign, such as C42.")],
    output: OutputOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Export one campaign with its newest sessions (at most 200), and what its sessions share."""
    settings = load_settings(config, overrides)
    from hermes.analysis.stix import Bundle

    names = catalogue()
    with _created(output) as target, opened(settings) as index, JournalReader(settings.journal_path) as journal:
        found, members = findings.campaign(index, campaign)
        dossiers = []
        for member in members[:MAX_SESSIONS]:
            try:
                dossiers.append(_dossier(index, journal, member.session_id))
            except JournalError:  # it was removed from the journal just now
                continue
        if not dossiers:
            fail(f"the journal has no session of campaign {found.id} any more")
        bundle = Bundle(dossiers[0].session.sensor, names)
        name = bundle.campaign(found, index.position.journal)
        for dossier in reversed(dossiers):
            bundle.session(dossier, name)
        target.write(bundle.serialize() + "\n")


def _dossier(index: IndexReader, journal: JournalReader, session: str) -> "Dossier":
    from hermes.analysis.stix import Dossier

    found = journal.get_session(session)
    return Dossier(
        session=found,
        events=journal.session_events(found.session_id),
        commands=[it.parsed for it in index.commands(found.session_id)],
        techniques=findings.techniques(index, found.session_id),
        files=findings.session_files(index, found.session_id),
        returns=findings.returns(index, found.session_id),
    )


@contextmanager
def _created(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a new file, made while this process may still write where the operator may. Where what follows fails
    it is removed, if it still may be."""
    if output is None:
        yield sys.stdout
        return
    try:
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")
    try:
        with os.fdopen(target, "w", encoding="ascii") as file:
            yield file
    except BaseException:
        with suppress(OSError):
            output.unlink()
        raise
