"""The outputs' process: sends events on to wherever the operator wants them."""

from pathlib import Path

from hermes import background, outputs
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files, Rule


def main() -> None:
    """Run the outputs until the launcher ends them or is gone."""
    background.run("outputs", rules=own_files, work=outputs.run, connects=True)


def own_files(settings: Settings) -> list[Rule]:
    """What the outputs may do with files: read the journal, and anything with their positions in it."""
    return [
        Rule(settings.outputs_dir, OWN),
        Rule(settings.journal_dir, READ),
        Rule(Path("/proc/self"), Files.READ_FILE),
    ]
