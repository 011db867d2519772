"""`hermes sessions export`: all that is kept of sessions, in one file."""

import os
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from hermes.cli.console import (
    FAILED,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.cli.new_file import new_file
from hermes.cli.privileges import opened_journal
from hermes.cli.timeline import text_lines
from hermes.cli.words import size
from hermes.config import Settings
from hermes.evidence.bundle import PASSWORD, Bundle, Sources
from hermes.recording.recorder import is_session_id


@reporting()
def export(
    sessions: Annotated[list[str], typer.Argument(metavar="ID…", help="Session ids, or beginnings that only one session has.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to make; by default ID.zip here.")
    ] = None,
    raw_artifacts: Annotated[
        bool,
        typer.Option(
            "--raw-artifacts", help=f"Artifacts as they are, not in a zip with the password `{PASSWORD}`: live malware."
        ),
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export sessions as one zip: recordings, every stream, events, timeline, artifacts, and a manifest with the SHA-256 of each.

    The same evidence makes the same file. `hermes verify-evidence FILE` checks it.
    """
    settings = load_settings(config, overrides)
    name = sessions[0] if len(sessions) == 1 and is_session_id(sessions[0]) else f"{len(sessions)}-sessions"
    with new_file(output or Path(f"{name}.zip")) as (file, made):
        found, digest = _write(settings, file, sessions, raw_artifacts=raw_artifacts)
        length = os.fstat(file.fileno()).st_size
    if as_json:
        print_json({"file": str(made), "bytes": length, "sessions": found, "manifest_sha256": digest})
    else:
        console.print(f"{visible(str(made))}: {len(found)} session{'s' * (len(found) != 1)}, {size(length)}", soft_wrap=True)
        console.print(f"manifest.json has SHA-256 {digest}", soft_wrap=True)


def _write(settings: Settings, file: BinaryIO, sessions: list[str], *, raw_artifacts: bool) -> tuple[list[str], str]:
    sources = Sources(journal=settings.journal_path, recordings=settings.recordings_dir, artifacts=settings.artifacts_dir)
    with opened_journal(settings) as journal:
        found = list(dict.fromkeys(journal.get_session(one).session_id for one in sessions))
        if strange := [one for one in found if not is_session_id(one)]:
            fail(f"{strange[0][:80]!r} is not an id that a session can have")
        try:
            with journal.snapshot() as db:
                return found, Bundle(file, sources, raw_artifacts=raw_artifacts, render=text_lines).write(db, found)
        except OSError as error:
            fail(f"the sessions cannot be exported: {error.strerror}", FAILED)
