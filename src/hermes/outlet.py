"""The outputs' process: sends events on to wherever the operator wants them."""

from pathlib import Path

from hermes import background
from hermes.config import Settings
from hermes.config.outputs import CowrieOutput, JsonLinesOutput
from hermes.confine.landlock import OWN, READ, Files, Rule
from hermes.outputs import Outputs

READ_BY_LIBRARIES = (
    "/etc", "/run/systemd/resolve", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/zoneinfo",
    "/dev/urandom",
)  # fmt: skip
"""What the C library turns names into addresses by, and where PostgreSQL's has its certificates (all others read theirs before).
All of /etc, as far as `sensor.user` may: a resolv.conf that is replaced while we run is another file."""


def main() -> None:
    """Run the outputs until the launcher ends them or is gone."""
    outputs = Outputs()
    background.run("outputs", rules=own_files, work=outputs.run, before=outputs.prepare, connects=True)


def own_files(settings: Settings) -> list[Rule]:
    """What the outputs may do with files: read the evidence, and anything with their positions in it and in the directories of
    the files they write."""
    files = (Path(it.path) for it in settings.outputs if isinstance(it, JsonLinesOutput | CowrieOutput) and it.path != "stdout")
    return [
        Rule(settings.outputs_dir, OWN),
        *(Rule(directory, OWN, optional=True) for directory in sorted({it.parent for it in files})),
        Rule(settings.journal_dir, READ),
        *(Rule(path, READ, optional=True) for path in (settings.recordings_dir, *map(Path, READ_BY_LIBRARIES))),
        Rule(Path("/proc/self"), Files.READ_FILE),
    ]
