"""The outputs' process: sends events on to wherever the operator wants them."""

from pathlib import Path

from hermes import background
from hermes.config import Settings
from hermes.config.outputs import CowrieOutput, JsonLinesOutput
from hermes.confine.landlock import OWN, READ, Files, Rule
from hermes.outputs import Outputs

RESOLVING = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/localtime",
    "/run/systemd/resolve", "/usr/share/zoneinfo", "/dev/urandom",
)  # fmt: skip
"""What the C library reads to turn names into addresses."""
CERTIFICATES = ("/etc/ssl", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
"""What the PostgreSQL library reads when it connects; all others read their certificates before."""


def main() -> None:
    """Run the outputs until the launcher ends them or is gone."""
    outputs = Outputs()
    background.run("outputs", rules=own_files, work=outputs.run, before=lambda settings, _: outputs.prepare(settings), connects=True)


def own_files(settings: Settings) -> list[Rule]:
    """What the outputs may do with files: read the evidence, and anything with their positions in it and in the directories of
    the files they write."""
    files = (Path(it.path) for it in settings.outputs if isinstance(it, JsonLinesOutput | CowrieOutput) and it.path != "stdout")
    read = [settings.recordings_dir, *map(Path, (*RESOLVING, *CERTIFICATES))]
    return [
        Rule(settings.outputs_dir, OWN),
        *(Rule(directory, OWN) for directory in sorted({it.parent for it in files}) if directory.is_dir()),
        Rule(settings.journal_dir, READ),
        *(Rule(path, READ) for path in read if path.exists()),
        Rule(Path("/proc/self"), Files.READ_FILE),
    ]
