"""Recorded before delivered: whatever moment a recording process is killed at, what it had passed on is in its recordings.

Run as a module this file is the process that gets killed, or that runs out of disk.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path

import pytest

from hermes.config.keeping import RecordingConfig
from hermes.errors import RecordingError
from hermes.recording.asciicast import TextStream
from hermes.recording.lossless import Ending, Kind
from hermes.recording.reader import ChannelRecording, channels
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import SessionInfo

ROUNDS = 60
STREAMS = (Kind.STDIN, Kind.STDOUT, Kind.STDERR)
ROOT = Path(__file__).parents[2]


def chunk(number: int) -> tuple[Kind, bytes]:
    """Return the piece of traffic number `number`: of every size, with its number in it, and characters cut in two."""
    dice = random.Random(number)
    size = dice.choice((0, 1, 30, 4_000, 65_536, 200_000))
    body = b"" if size < 30 else ("é€\x1b[31m0123456789\r\n" * (size // 20)).encode()[: size - 1]
    return dice.choice(STREAMS), b"%08d " % number + body + dice.choice((b"\xc3", b"\n", b"\0", b"\xff"))


def record(recorder: SessionRecorder, number: int) -> None:
    kind, data = chunk(number)
    if kind is Kind.STDIN:
        recorder.input(data)
    else:
        recorder.output(data, stderr=kind is Kind.STDERR)


def assert_recorded(recording: ChannelRecording, delivered: int) -> Ending:
    """Chunks 0 … `delivered` - 1 are in both recordings, and the lossless one holds nothing but chunks in order."""
    pieces: defaultdict[Kind, list[bytes]] = defaultdict(list)
    play = recording.play()
    for frame in play:
        pieces[frame.kind].append(frame.data)
    got = {kind: b"".join(pieces[kind]) for kind in STREAMS}
    at = dict.fromkeys(STREAMS, 0)
    text: dict[str, list[str]] = {"i": [], "o": []}
    decoders = {kind: TextStream() for kind in STREAMS}
    for number in count():
        if number >= delivered and all(at[kind] >= len(got[kind]) for kind in STREAMS):
            break
        kind, data = chunk(number)
        recorded = got[kind][at[kind] : at[kind] + len(data)]
        at[kind] += len(data)
        if number < delivered:
            text["i" if kind is Kind.STDIN else "o"].append(decoders[kind].feed(data))
            assert recorded == data, f"chunk {number} was delivered but not recorded"
        else:
            assert data.startswith(recorded), f"{kind.name} holds what was never sent"
    played: dict[str, list[str]] = {"i": [], "o": []}
    for event in recording.cast_events():
        if event.code in played:
            played[event.code].append(event.text)
    for code, expected in text.items():
        assert "".join(played[code]).startswith("".join(expected)), "delivered but not in the asciicast"
    return play.ending


def kill_many(root: Path, rounds: int) -> None:
    """Let `rounds` processes record until each is killed; print as JSON how many chunks each had passed on."""
    delivered = {}
    dice = random.Random()
    for number in range(rounds):
        name = f"round{number}"
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            recorder = SessionRecorder(RecordingConfig(output_dir=root), SessionInfo(name, "root", "192.0.2.7", 1))
            recorder.start()
            os.write(theirs, b".")
            for one in count():
                record(recorder, one)
                os.write(theirs, b".")
        os.close(theirs)
        os.read(ours, 1)
        deadline = time.monotonic() + dice.uniform(0, 0.05)
        passed_on = 0
        while (left := deadline - time.monotonic()) > 0:
            if select.select([ours], [], [], left)[0]:
                passed_on += len(os.read(ours, 65_536))
        os.kill(pid, signal.SIGKILL)
        while rest := os.read(ours, 65_536):
            passed_on += len(rest)
        os.close(ours)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        delivered[name] = passed_on
    print(json.dumps(delivered))


def fill_disk(root: Path) -> None:
    """Record into `root` until its disk is full; print as JSON what came of it."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    recorder = SessionRecorder(RecordingConfig(output_dir=root), SessionInfo("full", "root", "192.0.2.7", 1))
    recorder.start()
    delivered, error = 0, ""
    while not error:
        try:
            record(recorder, delivered)
            delivered += 1
        except RecordingError as failure:
            error = str(failure)
    recorder.close(exit_status=0)
    (recording,) = channels(root, "full")
    late = SessionRecorder(RecordingConfig(output_dir=root), SessionInfo("late", "root", "192.0.2.7", 1))
    try:
        late.start()
    except RecordingError as failure:
        late_error = str(failure)
    print(
        json.dumps(
            {
                "delivered": delivered,
                "error": error,
                "late": late_error,
                "late_files": len(list(late.path.parent.glob("*"))),
                "ending": assert_recorded(recording, delivered).value,
                "leaked": len(list(Path("/proc/self/fd").iterdir())) - before,
            }
        )
    )


def run(*command: str | Path) -> dict[str, object]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_what_was_delivered_before_a_kill_is_recorded(tmp_path: Path) -> None:
    delivered = run(sys.executable, "-m", __name__, "kill", tmp_path)
    assert len(delivered) == ROUNDS
    endings = set()
    for name, passed_on in delivered.items():
        assert isinstance(passed_on, int)
        (recording,) = channels(tmp_path, name)
        endings.add(assert_recorded(recording, passed_on))
    assert endings <= {Ending.OPEN, Ending.TORN}
    counts = [passed_on for passed_on in delivered.values() if isinstance(passed_on, int)]
    assert sum(passed_on > 3 for passed_on in counts) > ROUNDS // 3, f"the processes were killed too early to tell: {counts}"


@pytest.mark.root
@pytest.mark.parametrize("size", ["256k", "1m", "3m"])
def test_a_full_disk_ends_the_recording_and_loses_nothing_delivered(tmp_path: Path, size: str) -> None:
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && exec "$3" -m "$4" fill "$2"'
    result = run("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", size, tmp_path, sys.executable, __name__)
    assert "No space left on device" in str(result["error"])
    assert "No space left on device" in str(result["late"])
    assert result["late_files"] == 0
    assert result["ending"] in ("open", "torn")
    assert result["leaked"] == 0
    assert list(tmp_path.iterdir()) == [], "the small disk was mounted here for others to see"


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_many(Path(sys.argv[2]), ROUNDS)
    else:
        fill_disk(Path(sys.argv[2]))
