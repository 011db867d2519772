"""`hermes doctor`: what it prints and how it ends."""

import json

import pytest
from typer.testing import CliRunner

from hermes.broker.machine import Result, State
from hermes.cli import app

FINE = Result("root", State.OK, "running as root")
WARNED = Result("image", State.WARNING, "not built", "hermes image build")
FAILED = Result("user", State.FAILED, "no user [bold]hermes[/bold]\x1b[2J", "useradd hermes")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What the examination finds."""
    found: list[Result] = []
    monkeypatch.setattr("hermes.cli.doctor.examine", lambda settings: found)
    return found


def test_a_machine_that_is_ready(results: list[Result]) -> None:
    results += [FINE, WARNED]
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "ok       root" in done.stdout
    assert "→ hermes image build" in done.stdout
    assert "This machine is ready." in done.stdout


def test_a_machine_that_is_not(results: list[Result]) -> None:
    results += [FINE, FAILED]
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "failed   user             no user [bold]hermes[/bold]\\x1b[2J" in done.stdout
    assert "→ useradd hermes" in done.stdout
    assert "1 of 2 checks failed" in done.stdout
    assert "\x1b[2J" not in done.stdout


@pytest.mark.parametrize("failing", [False, True])
def test_as_json(results: list[Result], failing: bool) -> None:
    results += [WARNED, *([FAILED] if failing else [])]
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == int(failing)
    first, *rest = json.loads(done.stdout)
    assert first == {"name": "image", "state": "warning", "detail": "not built", "fix": "hermes image build"}
    assert [entry["state"] for entry in rest] == (["failed"] if failing else [])


def test_a_wrong_configuration_is_one_line_and_exit_code_2(results: list[Result]) -> None:
    done = CliRunner().invoke(app, ["doctor", "--set", "server.colour=red"])
    assert done.exit_code == 2
    assert done.stdout == ""
