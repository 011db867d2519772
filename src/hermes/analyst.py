"""The analyst's process: derives from the journal what operators search, and keeps it in the index."""

from pathlib import Path

from hermes import background
from hermes.analysis.insight import Insight
from hermes.analysis.work import run
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files, Rule


def main() -> None:
    """Run the analyst until the launcher ends it or is gone."""
    insight = Insight(artifact)
    background.run(
        "analyst", rules=own_files, before=insight.prepare, work=lambda settings, report: run(settings, report, insight.stages())
    )  # fmt: skip


def artifact(directory: Path, sha256: str) -> Path:
    """Where a content is kept."""
    return directory / sha256[:2] / sha256[2:4] / sha256


def own_files(settings: Settings) -> list[Rule]:
    """What the analyst may do with files: read the evidence, and anything with its index."""
    evidence = settings.artifacts_dir, settings.journal_dir, settings.recordings_dir
    return [
        Rule(settings.index_dir, OWN),
        *(Rule(directory, READ) for directory in evidence if directory.is_dir()),
        Rule(Path("/proc/self"), Files.READ_FILE),
    ]
