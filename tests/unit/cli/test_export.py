"""`hermes sessions export`."""

import asyncio
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hermes.cli import app
from tests.unit.evidence.test_bundle import make

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    asyncio.run(make(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(tmp_path / "data"))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_one_session_goes_into_a_file_of_its_name_that_verifies(run: Run) -> None:
    done = run("sessions", "export", "a")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("a.zip: 1 session, ")
    checked = run("verify-evidence", "a.zip")
    assert checked.exit_code == 0, checked.output
    assert "sealed as number 1" in checked.stdout
    with zipfile.ZipFile("a.zip") as archive:
        text = archive.read("a/timeline.txt").decode()
    assert "auth.attempt" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_several_go_into_one_each_once(run: Run, tmp_path: Path) -> None:
    done = run("sessions", "export", "b", "a", "b", "-o", "both.zip", "--raw-artifacts", "--json")
    told = json.loads(done.stdout)
    assert (told["sessions"], told["file"]) == (["b", "a"], "both.zip")
    assert told["bytes"] == (tmp_path / "both.zip").stat().st_size


def test_nothing_is_written_over_and_nothing_is_left_of_what_is_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("mine")
    done = run("sessions", "export", "a")
    assert (done.exit_code, done.stderr) == (1, "hermes: cannot make a.zip: File exists\n")
    assert run("sessions", "export", "a", "zzz", "-o", "x.zip").exit_code == 1
    assert not (tmp_path / "x.zip").exists()
    assert (tmp_path / "a.zip").read_text() == "mine"
