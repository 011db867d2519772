"""`hermes sessions timeline`: what is printed, and what is not."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermes import events
from hermes.cli.sessions import app
from hermes.config import RecordingConfig, Settings
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo
from hermes.store import Journal
from tests.unit.store.facts import login, logout

Run = Callable[..., Result]
EVIL = b"\x1b]0;owned\x07\xff\x80[31m\n"
BOTH: Any = {"connection_id": "c-s", "session_id": "s"}
BOX: Any = {"container_id": "box1", "channel": 0, **BOTH}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `hermes sessions timeline s …` on a session in which much was done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(tmp_path))
    settings = Settings(data_dir=tmp_path)
    settings.journal_path.parent.mkdir()
    journal = Journal(settings.journal_path, sensor="s1")
    journal.open()
    for one in login("s")[:-1]:
        journal.emit(one)
    info = SessionInfo("s", "root", "192.0.2.7", 4001, authenticated=True)
    recorder = SessionRecorder(RecordingConfig(), info, channel=0, output_dir=settings.recordings_dir)
    recorder.start()
    journal.emit(events.ChannelStarted(channel=0, kind="shell", recording=recorder.relative_path, **BOTH))
    process: Any = {"uid": 0, "gid": 0, "cwd": "/root", **BOX}
    journal.emit(events.ProcessStarted(pid=10, parent=0, program="/bin/bash", argv=["-bash"], **process))
    recorder.input(b"wget \x1b[31mx\n")
    journal.emit(events.ChannelInput(channel=0, line="wget x", **BOTH))
    recorder.input(b"id\n")
    journal.emit(events.ChannelInput(channel=0, line="id", **BOTH))
    journal.emit(events.ProcessStarted(pid=11, parent=10, program="/usr/bin/wget", argv=["wget", "\x1b[2J", ""], **process))
    journal.emit(
        events.NetworkAttempted(
            pid=11, call="connect", family="inet", protocol="tcp", address="192.0.2.9", port=80, outcome="ENETUNREACH", **BOX
        )
    )
    recorder.output(EVIL)
    recorder.output(b"".join(b"row %d\n" % number for number in range(40)))
    journal.emit(events.FileWritten(pid=11, path="/tmp/\u202ex", size=2048, skipped="too large", **BOX))
    journal.emit(events.ProcessExited(pid=11, status=4, duration=0.5, **BOX))
    recorder.close(exit_status=0)
    for one in logout("s"):
        journal.emit(one)
    journal.close()
    return lambda *arguments: CliRunner().invoke(app, ["timeline", "s", *arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_tells_the_whole_story_in_order_and_moves_no_terminal(run: Run) -> None:
    shown = run()
    assert shown.exit_code == 0, shown.output
    assert all(line.isprintable() for line in shown.stdout.splitlines())
    expected = [
        "auth.attempt", "method=password", "-bash  (pid 10", "> wget \\x1b[31mx", "> wget x", "> id",
        "  wget \\x1b[2J ''  (pid 11",
        "connect tcp 192.0.2.9 port 80: ENETUNREACH", "| \\x1b]0;owned\\x07\\xff", "| row 10", "more lines",
        "wrote /tmp/\\u202ex, 2.0 kB  not kept: too large", "pid 11 ended with 4 after 0.5 s", "channel.closed",
    ]  # fmt: skip
    at = 0
    for text in expected:
        assert (at := shown.stdout.find(text, at)) >= 0, f"{text}\n{shown.stdout}"
    assert shown.stdout.count("> id") == 1, "the line stands there key by key"


def test_full_cuts_nothing_short(run: Run) -> None:
    assert "| row 39" in run("--full").stdout
    assert "| row 39" not in run().stdout


def test_json_lines_are_ascii_and_have_every_byte_with_its_cause(run: Run) -> None:
    result = run("--json")
    found = lines(result)
    assert result.stdout.isascii()
    shown = b"".join(
        base64.b64decode(one["base64"]) if "base64" in one else one["text"].encode() for one in found if one["kind"] == "output"
    )
    assert shown == EVIL + b"".join(b"row %d\n" % number for number in range(40))
    (connect,) = [one for one in found if one["kind"] == "network"]
    assert (connect["channel"], connect["command"], connect["depth"]) == (0, "id", 2)
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    assert {one["id"] for one in found if "id" in one} == set(range(1, 18))


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--kind", "input,process"], {"input", "process"}),
        (["--kind", "network"], {"network"}),
        (["--since", "2200-01-01"], set()),
        (["--until", "2020-01-01"], set()),
        (
            ["--since", "1h", "--channel", "0", "--no-output"],
            {"channel", "process", "network", "file", "line", "input", "recording"},
        ),
    ],
)
def test_filters(run: Run, options: list[str], kinds: set[str]) -> None:
    assert {one["kind"] for one in lines(run("--json", *options))} == kinds


def test_pieces_stay_apart(run: Run) -> None:
    assert sum(one["kind"] == "output" for one in lines(run("--json", "--pieces"))) == 2


def test_errors_are_a_line(run: Run, tmp_path: Path) -> None:
    assert run("--since", "nonsense").exit_code == 2
    missing = CliRunner().invoke(app, ["timeline", "zzz"])
    assert (missing.exit_code, missing.stderr) == (1, "hermes: no session with an id like 'zzz'\n")
