import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermes.cli import app
from hermes.cli.stats import OVERVIEW
from tests.unit.analysis.facts import analyst, ran, settings, visit, work
from tests.unit.store.facts import write

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    made = settings(directory)
    write(
        made.journal_path,
        *visit("one"),
        *ran("one", "uname -a", "wget http://192.0.2.9/x"),
        *visit("two", password="\x1b[2J[red]"),
    )
    with analyst(made) as working:
        work(working)
    return directory


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["stats", *arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_as_json_has_what_others_build_on(run: Run) -> None:
    found = parsed(run("--json"))
    assert found["totals"] == {"connections": 2, "sessions": 2, "attempts": 2, "commands": 2, "files": 0}
    assert set(found["top"]) == set(OVERVIEW)
    assert found["series"] is None
    first = found["top"]["countries"][0]
    assert (first["country"], first["count"]) == ("NL", 2)
    assert first["last"].endswith("Z")


def test_one_kind_can_be_asked_for(run: Run) -> None:
    assert set(parsed(run("hosts", "keys", "--json"))["top"]) == {"hosts", "keys"}
    assert run("nonsense").exit_code == 2


def test_hours_and_days(run: Run) -> None:
    found = parsed(run("--by", "hour", "--json"))
    assert found["top"] == {}
    assert sum(it["connections"] for it in found["series"]) == 2
    assert set(parsed(run("--by", "day", "usernames", "--json"))["top"]) == {"usernames"}
    assert "connections" in run("--by", "day").stdout


def test_bounds_of_time(run: Run) -> None:
    assert parsed(run("--until", "1h", "--json"))["totals"]["connections"] == 0
    assert parsed(run("--since", "1h", "--json"))["totals"]["connections"] == 2
    assert run("--since", "x").exit_code == 2


def test_tables_show_attackers_text_escaped_and_brackets_as_they_are(run: Run) -> None:
    out = run().stdout
    assert out.replace("\n", "").isprintable()
    assert "\\x1b[2J[red]" in out
    assert "wget URL" in out


def test_without_an_index_it_says_so_in_one_line(run: Run) -> None:
    result = run("--set", "data_dir=/nonexistent")
    assert result.exit_code == 1
    assert result.stderr.startswith("hermes: there is no index at /nonexistent/index/index.db: ")
    assert result.stderr.count("\n") == 1
