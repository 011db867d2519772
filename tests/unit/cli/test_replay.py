import base64
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hermes.cli.replay import replay, schedule
from hermes.config.keeping import RecordingConfig
from hermes.recording.lossless import Frame, Kind
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import SessionInfo

BINARY = bytes(range(256)) * 300
COMMAND = (sys.executable, "-c", "import typer; from hermes.cli.replay import replay; typer.run(replay)")

app = typer.Typer()
app.command()(replay)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HERMES_RECORDING__OUTPUT_DIR", str(tmp_path))
    return tmp_path


def record(root: Path, channel: int, *output: bytes, session: str = "5e55", command: bytes | None = None) -> SessionRecorder:
    info = SessionInfo(session, "ro\x1bot", "192.0.2.7", 1)
    kind = "shell" if command is None else "exec"
    recorder = SessionRecorder(RecordingConfig(output_dir=root), info, channel=channel, kind=kind, command=command)
    recorder.start()
    recorder.input(b"typed\xc3")
    for data in output:
        recorder.output(data)
    recorder.output(b"\xffbad", stderr=True)
    recorder.resize(100, 30)
    recorder.input(b"\xa9")
    recorder.marker("signal INT")
    recorder.close(exit_status=3)
    return recorder


def run(*arguments: str) -> bytes:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def test_raw_gives_the_exact_bytes_of_a_stream(root: Path) -> None:
    record(root, 0, BINARY, b"\xe2", b"\x82\xac")
    assert run("5e55", "--raw") == BINARY + b"\xe2\x82\xac"
    assert run("5e", "--raw", "--stream", "stderr") == b"\xffbad"
    assert run("5e", "--raw", "--stream", "stdin", "--channel", "0") == b"typed\xc3\xa9"


def test_raw_joins_channels_in_the_order_they_began(root: Path) -> None:
    record(root, 4, b"first ")
    record(root, 2, b"second")
    assert run("5e55", "--raw") == b"first second"
    assert run("5e55", "--raw", "--channel", "2") == b"second"


def test_playing_shows_output_alone_with_a_line_before_each_channel(root: Path) -> None:
    record(root, 0, b"\x1b[31mred\x1b[0m")
    record(root, 1, b"uid=0\n", command=b"id\x1b[2J\n\xff")
    first, second = run("5e55", "--speed", "inf").split(b"\r\n--- ")
    assert first.startswith(b"--- channel 0 \xc2\xb7 ro\\x1bot@192.0.2.7 \xc2\xb7 20")
    assert first.endswith(b"shell ---\r\n\x1b[31mred\x1b[0m\xffbad")
    assert second.startswith(b"channel 1 ")
    assert second.endswith(rb"exec id\x1b[2J\n\xff ---" + b"\r\nuid=0\n\xffbad")
    assert run("5e55", "--channel", "1") == b"uid=0\n\xffbad"


def test_schedule_keeps_pauses_cuts_idling_and_speeds_up() -> None:
    second = 1_000_000_000
    frames = [
        Frame(1 * second, Kind.STDOUT, b"a"),
        Frame(2 * second, Kind.STDIN, b"x"),
        Frame(2 * second, Kind.STDERR, b"b"),
        Frame(1002 * second, Kind.STDOUT, b"c"),
        Frame(1003 * second, Kind.END, b""),
    ]
    assert list(schedule(frames, speed=1, max_idle=2)) == [(1, b"a"), (2, b"b"), (4, b"c")]
    assert list(schedule(frames, speed=4, max_idle=2)) == [(0.25, b"a"), (0.5, b"b"), (1, b"c")]
    assert list(schedule(frames, speed=2, max_idle=5000)) == [(0.5, b"a"), (1, b"b"), (501, b"c")]
    assert list(schedule([Frame(2**63, Kind.STDOUT, b"z")], speed=1, max_idle=float("inf"))) == [(3600, b"z")]


def test_json_has_every_event(root: Path) -> None:
    record(root, 0, b"\x7f caf\xc3", b"\xa9")
    printed = run("5e55", "--json")
    assert printed.isascii()
    assert b"\x7f" not in printed
    events = json.loads(printed)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    for event in events:
        assert event.pop("channel") == 0
        assert event.pop("time") >= 0
        if "data" in event:
            event["data"] = base64.b64decode(event["data"])
    assert events == [
        {"kind": "stdin", "data": b"typed\xc3", "text": "typed"},
        {"kind": "stdout", "data": b"\x7f caf\xc3", "text": "\x7f caf"},
        {"kind": "stdout", "data": b"\xa9", "text": "é"},
        {"kind": "stderr", "data": b"\xffbad", "text": "\ufffdbad"},
        {"kind": "resize", "width": 100, "height": 30, "pixel_width": 0, "pixel_height": 0},
        {"kind": "stdin", "data": b"\xa9", "text": "é"},
        {"kind": "marker", "label": "signal INT"},
        {"kind": "end", "exit_status": 3, "exit_signal": None},
    ]


def test_json_of_nothing_is_an_array(root: Path) -> None:
    recorder = record(root, 0)
    recorder.path.with_suffix(".rec").write_bytes(b"")
    assert json.loads(run("5e55", "--json")) == []


def test_a_torn_recording_is_played_and_told(root: Path) -> None:
    rec = record(root, 0, b"whole").path.with_suffix(".rec")
    os.truncate(rec, rec.stat().st_size - 1)
    result = CliRunner().invoke(app, ["5e55", "--channel", "0"])
    assert result.exit_code == 0
    assert result.stdout_bytes.startswith(b"whole\xffbad")
    assert "channel 0: the recording is torn here" in result.stderr


def test_what_cannot_be_done_is_said_in_one_line(root: Path) -> None:
    recorder = record(root, 0)
    record(root, 0, session="5e56")
    assert refused("5e5") == "hermes: 2 recorded sessions begin with 5e5: 5e55, 5e56"
    assert "no recorded session begins with" in refused("\x1b[2J")
    assert refused("5e55", "--channel", "9") == "hermes: session 5e55 has no recording of channel 9"
    assert "--speed" in refused("5e55", "--speed", "nan")
    assert "--speed" in refused("5e55", "--speed", "0")
    assert "--raw" in refused("5e55", "--raw", "--json")
    assert "--stream" in refused("5e55", "--stream", "stdin")
    recorder.path.with_suffix(".rec").unlink()
    assert refused("5e55") == "hermes: session 5e55 has no recording"


@pytest.mark.parametrize("arguments", [("--raw",), ("--json",), ("--speed", "inf")])
def test_a_reader_that_leaves_ends_it_quietly(root: Path, arguments: tuple[str, ...]) -> None:
    record(root, 0, *[BINARY] * 40)
    with subprocess.Popen([*COMMAND, "5e55", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


class Screen:
    """A terminal with a program in it: `answers` are what it types when it is shown something."""

    def __init__(self, *arguments: str, answers: dict[bytes, bytes], stdin: int | None = None) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.answers = answers
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self.slave if stdin is None else stdin,
            stdout=self.slave,
            stderr=self.slave,
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.05)[0]:
                data = os.read(self.master, 65_536)
                start = max(len(self.shown) - 10, 0)
                seen = len(self.shown)
                self.shown += data
                for question, answer in self.answers.items():
                    at = self.shown.find(question, start)
                    if at >= 0 and at + len(question) > seen:
                        os.write(self.master, answer)

    def ended(self) -> bool:
        return self.process.poll() is not None and not select.select([self.master], [], [], 0)[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        os.close(self.master)
        os.close(self.slave)


def left_to_read(fd: int) -> bytes:
    """What is typed ahead at a terminal, complete line or not."""
    modes = termios.tcgetattr(fd)
    modes[3] &= ~termios.ICANON
    modes[6][termios.VMIN] = modes[6][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSANOW, modes)
    return os.read(fd, 4096)


@pytest.mark.parametrize("stdin", [None, subprocess.DEVNULL], ids=["terminal", "elsewhere"])
def test_the_terminal_is_put_in_order_and_its_answers_are_not_typed_into_the_shell(root: Path, stdin: int | None) -> None:
    record(root, 0, b"\x1b]2;rm -rf ~\x07\x1b[?1049h\x1b[?25l\x1b[21t", b"unfinished \x1b]0;")
    screen = Screen("5e55", stdin=stdin, answers={b"\x1b[21t": b"\x1b]lrm -rf ~\r\n\x1b\\", b"\x1b[5n": b"\x1b[0n"})
    try:
        screen.until(screen.ended)
        assert screen.process.returncode == 0
        played, reset = screen.shown.split(b"unfinished \x1b]0;")
        assert b"\x1b]2;rm -rf ~\x07\x1b[?1049h" in played
        assert reset.index(b"\x1b\\") < reset.index(b"\x1b[?1049l") < reset.index(b"\x1b[!p") < reset.index(b"\x1b[?25h")
        assert b"]lrm" not in screen.shown, "the answer was echoed"
        assert termios.tcgetattr(screen.slave) == screen.before
        assert left_to_read(screen.slave) == b""
    finally:
        screen.close()


def test_ctrl_c_stops_it_cleanly(root: Path) -> None:
    recorder = SessionRecorder(RecordingConfig(output_dir=root), SessionInfo("5e55", "root", "192.0.2.7", 1))
    recorder.start()
    recorder.output(b"\x1b[?25lplaying")
    recorder._start -= 3600 * 1_000_000_000
    recorder.output(b"an hour later")
    recorder.close()
    screen = Screen("5e55", "--max-idle", "3600", answers={b"playing": b"\x03", b"\x1b[5n": b"\x1b[0n"})
    try:
        screen.until(screen.ended)
        assert screen.process.returncode == 130
        assert b"an hour later" not in screen.shown
        assert b"Traceback" not in screen.shown
        assert b"Aborted" not in screen.shown
        assert screen.shown.rindex(b"\x1b[?25h") > screen.shown.index(b"playing")
        assert termios.tcgetattr(screen.slave) == screen.before
    finally:
        screen.close()
