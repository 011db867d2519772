"""The analyst's process: derives from the journal what operators search, and keeps it in the index."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from hermes import artifacts, background
from hermes.analysis.insight import Insight
from hermes.analysis.work import run
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files, Rule
from hermes.evidence.artifacts import Input, copy, size


def main() -> None:
    """Run the analyst until the launcher ends it or is gone."""
    with closing(Insight(content)) as insight:
        background.run(
            "analyst",
            rules=own_files,
            before=insight.prepare,
            work=lambda settings, report: run(settings, report, insight.stages()),
        )


def content(settings: Settings, sha256: str, inputs: Sequence[tuple[str, int]]) -> BinaryIO:
    """Open what is kept by that hash: as a file, or as the input of one of these channels, each a session's id and a number.

    Raises ArtifactUnavailable, OSError.
    """
    if size(settings.artifacts_dir, sha256) is not None:
        return artifacts.path(settings.artifacts_dir, sha256).open("rb")
    copied = tempfile.TemporaryFile(dir=settings.index_dir)  # noqa: SIM115  the caller closes it
    try:
        sources = [Input(session, channel) for session, channel in inputs]
        copy(sha256, copied, directory=settings.artifacts_dir, recordings=settings.recordings_dir, inputs=sources)
    except BaseException:
        copied.close()
        raise
    return copied


def own_files(settings: Settings) -> list[Rule]:
    """What the analyst may do with files: read the evidence, and anything with its index."""
    evidence = settings.artifacts_dir, settings.journal_dir, settings.recordings_dir
    return [
        Rule(settings.index_dir, OWN),
        *(Rule(directory, READ) for directory in evidence if directory.is_dir()),
        Rule(Path("/proc/self"), Files.READ_FILE),
    ]
