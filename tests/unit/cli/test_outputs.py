"""`hermes outputs`: what it says of outputs that work, fail, fell behind or have not begun."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hermes.cli import app
from hermes.store import cursors
from hermes.store.cursors import Cursor
from tests.unit.store.facts import fact, stored, write


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a journal of five events, and a configuration of four outputs."""
    data = tmp_path / "data"
    (data / "journal").mkdir(parents=True)
    (data / "outputs").mkdir()
    write(data / "journal/journal.db", *(fact(it) for it in range(5)))
    lines = [f"  - {{type: jsonl, name: {name}, path: {tmp_path}/{name}.jsonl}}" for name in ("well", "late", "new", "broken")]
    (tmp_path / "hermes.yaml").write_text("\n".join([f"data_dir: {data}", "outputs:", *lines, ""]))
    (identity,) = stored(data / "journal/journal.db", "SELECT identity FROM journal")
    cursors.save(data / "outputs", "well", Cursor(journal=identity, id=5, delivered=5))
    late = Cursor(journal=identity, id=2, delivered=1, missed=3, failing_since=1_767_323_045.0, error="answers 500\x1b")
    cursors.save(data / "outputs", "late", late)
    (data / "outputs/broken.cursor").write_text("{")
    return data


def run(data_dir: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["outputs", *arguments, "--config", str(data_dir.parent / "hermes.yaml")])
    return done.exit_code, done.stdout, done.stderr


def test_how_each_output_does(data_dir: Path) -> None:
    code, said, _ = run(data_dir, "list")
    well, late, new, broken = said.splitlines()
    assert code == 0
    assert well.split(maxsplit=2) == ["well", "jsonl", "up to date, 5 delivered, up to event 5"]
    assert late.split(maxsplit=2)[2] == (
        "3 events behind, 1 delivered, up to event 2, MISSED 3: they were removed from the journal before, "
        "FAILING since 2026-01-02 03:04:05 UTC: answers 500\\x1b"
    )
    assert new.endswith("has not begun")
    assert "remove it, and the output begins anew" in broken


def test_the_same_as_json(data_dir: Path) -> None:
    code, said, _ = run(data_dir, "list", "--json")
    found = json.loads(said)
    assert code == 0
    assert [(it["name"], it["id"], it["lag"]) for it in found] == [
        ("well", 5, 0), ("late", 2, 3), ("new", None, None), ("broken", None, None)
    ]  # fmt: skip
    assert {key: value for key, value in found[1].items() if key != "journal"} == {
        "name": "late", "type": "jsonl", "id": 2, "lag": 3, "delivered": 1, "missed": 3,
        "failing_since": "2026-01-02T03:04:05+00:00", "last_error": "answers 500\x1b",
    }  # fmt: skip


def test_a_test_event_goes_out_and_moves_nothing(data_dir: Path) -> None:
    code, said, _ = run(data_dir, "test", "well")
    assert (code, said.startswith("well: delivered in ")) == (0, True)
    (line,) = (data_dir.parent / "well.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "output.tested"
    assert (cursors.load(data_dir / "outputs", "well") or Cursor()).id == 5
    code, said, _ = run(data_dir, "test", "well", "--json")
    assert json.loads(said)["delivered"] is True


def test_what_cannot_be_sent_and_what_is_not_there(data_dir: Path) -> None:
    (data_dir.parent / "well.jsonl").mkdir()
    code, _, complaint = run(data_dir, "test", "well")
    assert (code, complaint.startswith("hermes: well: ")) == (1, True)
    assert run(data_dir, "test", "none")[::2] == (2, "hermes: there is no output none: well, late, new, broken\n")


def test_no_outputs(data_dir: Path) -> None:
    (data_dir.parent / "hermes.yaml").write_text(f"data_dir: {data_dir}\n")
    assert run(data_dir, "list")[1] == "No outputs: set `outputs` in the configuration.\n"
    assert run(data_dir, "list", "--json")[1] == "[]\n"
