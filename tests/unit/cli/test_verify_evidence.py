"""`hermes verify-evidence`."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hermes.cli import app, verify_evidence
from tests.unit.evidence.test_bundle import make
from tests.unit.evidence.test_verification import Sensor, flip

Run = Callable[..., Result]


@pytest.fixture
def sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sensor:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(tmp_path / "data"))
    return asyncio.run(make(tmp_path / "data"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["verify-evidence", *arguments])


def test_it_says_that_all_is_well_and_what_the_head_is(sensor: Sensor) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    assert "2 manifests, the events of 2 sessions, 4 files, 1 artifacts read." in done.stdout
    assert "removed  artifact" in done.stdout
    assert done.stdout.endswith("Everything is as it was sealed.\n")
    head = json.loads(run("--json").stdout)["head"]
    assert f"head {head} (number 2)" in done.stdout
    assert run("--head", head).exit_code == 0
    assert run("--head", "ab" * 32).exit_code == 1


def test_a_line_a_finding_and_exit_code_1(sensor: Sensor) -> None:
    flip(sensor.recording("b"))
    done = run()
    assert done.exit_code == 1
    assert "changed  recording" in done.stdout
    assert "1 things are NOT as they were sealed." in done.stdout


def test_json_has_counts_head_and_findings(sensor: Sensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_evidence, "LISTED", 1)
    for name in ("0.rec", "0.cast"):
        flip(sensor.recording("b", name))
    done = run("--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"], told["sequence"], told["manifests"]) == (1, False, 2, 2)
    assert told["counts"] == {"changed": 2, "missing": 0, "added": 0, "removed": 1, "note": 0}
    assert sorted(one["state"] for one in told["findings"]) == ["changed", "removed"], "one of each is listed here"


def test_usage(sensor: Sensor, tmp_path: Path) -> None:
    assert run("nowhere.zip").stderr == "hermes: there is no file nowhere.zip\n"
    assert run("x.zip", "--head", "ab").exit_code == 2
    sensor.settings.journal_path.unlink()
    assert "there is no journal" in run().stderr
