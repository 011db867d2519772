"""The reference for the file formats is right: its reader reads what the recorder writes, its numbers are those of the code."""

import re
import subprocess
import sys
from pathlib import Path

from hermes.config.keeping import RecordingConfig
from hermes.recording import asciicast, lossless, recorder
from hermes.recording.facts import MAX_COMMAND, MAX_TEXT, Facts
from hermes.recording.lossless import Kind
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import SessionInfo

REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "recordings.md").read_text()
PROSE = " ".join(REFERENCE.split())


def test_the_reader_of_the_reference_reads_what_the_recorder_writes(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL)
    data = bytes(range(256)) * 700
    one = SessionRecorder(RecordingConfig(output_dir=tmp_path), SessionInfo("s", "root", "192.0.2.7", 1), command=b"\xff")
    one.start()
    one.output(data)
    one.input(b"no output")
    one.output(b"no stdout", stderr=True)
    one.output(b"tail")
    one.close()
    rec = one.path.with_suffix(".rec")
    read = subprocess.run([sys.executable, "-c", program, rec], capture_output=True, check=True, timeout=60).stdout
    assert read == data + b"tail"
    rec.write_bytes(rec.read_bytes()[:-80])
    assert subprocess.run([sys.executable, "-c", program, rec], capture_output=True, check=True, timeout=60).stdout == data


def test_the_numbers_of_the_reference_are_those_of_the_code() -> None:
    assert lossless.MAGIC.hex(" ") in REFERENCE
    assert f"at most {lossless.MAX_FACTS // 2**20} MiB" in PROSE
    assert f"at most {lossless.MAX_PAYLOAD // 1024} KiB" in PROSE
    assert f"kept to {MAX_TEXT} characters, the command to {MAX_COMMAND // 1024} KiB" in PROSE
    assert f"within 1…{asciicast.MAX_SIZE}" in PROSE
    assert f"at most {recorder.MAX_MARKERS} a channel, of {recorder.MAX_LABEL} characters" in PROSE
    assert recorder.RESIZES_PER_SECOND == 10
    assert "at most ten a second" in PROSE


def test_every_kind_and_every_fact_is_in_the_reference() -> None:
    rows = dict(re.findall(r"^\| (\d) \| ([a-z ]+) \|", REFERENCE, re.MULTILINE))
    names = {str(int(kind)): kind.name.lower().replace("stdin_eof", "stdin closed") for kind in Kind}
    assert rows == names
    facts = PROSE[PROSE.index("The facts:") :]
    for field in Facts.__struct_fields__:
        assert f"`{field}`" in facts
