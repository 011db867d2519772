import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermes.analysis import keys
from hermes.cli import app
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.test_scans import KEY
from tests.unit.analysis.world import artifact, attack

Run = Callable[..., Result]
FINGERPRINT = keys.fingerprint(KEY) or ""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sensor")
    left_by(
        directory,
        *attack(
            "planter", f"echo '{KEY}' >> ~/.ssh/authorized_keys; echo \x1b[31m", more=[artifact("broken", path="/tmp/\x1bx")]
        ),
        *attack("returner", "uname -a", key=FINGERPRINT),
    )
    return directory


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["techniques", *arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_counts_sessions(run: Run) -> None:
    counts = {it["technique"]: (it["sessions"], it["name"]) for it in parsed(run("list", "--json"))}
    assert counts["T1059.004"] == (2, "Command and Scripting Interpreter: Unix Shell")
    assert counts["T1098.004"] == (1, "Account Manipulation: SSH Authorized Keys")
    assert "       1  T1082      System Information Discovery\n" in run("list").stdout


def test_list_names_the_sessions_of_one(run: Run) -> None:
    assert [it["session_id"] for it in parsed(run("list", "--technique", "t1098.004", "--json"))] == ["planter"]
    assert "planter  root from 192.0.2.7" in run("list", "--technique", "T1098").stdout


def test_show_tells_what_shows_it(run: Run) -> None:
    whole = parsed(run("show", "plant", "--json"))
    assert whole["session_id"] == "planter"
    assert {it["rule"] for it in whole["techniques"]} >= {"planted-key", "unix-shell"}
    assert whole["campaign"].startswith("C")
    assert whole["files"][0]["failure"] == "the analysis was killed: SIGSEGV"
    shown = run("show", "planter").stdout
    assert "T1098.004  Planted an SSH key (1)" in shown
    assert f"returning-key: {FINGERPRINT} that it had left" in shown
    assert "the analysis was killed: SIGSEGV" in shown
    assert "\x1b" not in shown
    assert f"returning-key: {FINGERPRINT} that session planter left" in run("show", "returner").stdout


def test_a_session_that_is_not_there(run: Run) -> None:
    result = run("show", "nobody")
    assert (result.exit_code, result.stderr) == (1, "hermes: no session with an id like 'nobody'\n")
