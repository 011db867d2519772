import json
import platform

import pytest
from bench import report

RESULTS: report.Results = {
    ("exec", "plain", "p50 ms"): [3.0, 1.0, 2.0],
    ("exec", "sshd", "p50 ms"): [40.0],
    ("exec", "sshd", "p50 ms, no QUICKACK"): [90.0],
    ("exec", "hermes-local", "p50 ms"): [5.0],
}
FACTS = {"load": 0.1, "cores": 2}
TITLES = {"exec": "exec `true`"}
NOTES = {("exec", "cowrie"): "it was not there"}


def test_rows_are_medians_with_a_dash_where_nothing_was_measured() -> None:
    metrics, body = report.rows("exec", RESULTS)
    assert metrics == ["p50 ms", "p50 ms, no QUICKACK"]
    assert body == [["plain", "2", "–"], ["sshd", "40", "90"], ["hermes-local", "5", "–"]]


def test_rows_of_a_benchmark_that_did_not_run() -> None:
    assert report.rows("prompt", RESULTS) == ([], [])


def test_a_table_lines_figures_up_to_the_right() -> None:
    assert report.table(["", "ms"], [["a", "1"], ["long", "1000"]]).splitlines() == ["        ms", "a        1", "long  1000"]


def test_the_report_tells_what_is_missing_and_how_goals_stand() -> None:
    text = report.text(TITLES, RESULTS, NOTES, FACTS, quick=True)
    assert "cowrie: not measured: it was not there" in text
    assert "1 of 2 measured reached, 0 not measured" in text
    assert "quick run" in text
    assert "quick run" not in report.text(TITLES, RESULTS, NOTES, FACTS, quick=False)


def test_the_document_holds_every_round_and_names_no_machine() -> None:
    document = json.loads(json.dumps(report.document(TITLES, RESULTS, NOTES, FACTS, quick=False)))
    assert document["benchmarks"]["exec"]["plain"]["p50 ms"] == {"median": 2.0, "rounds": [3.0, 1.0, 2.0]}
    assert document["missing"] == [{"benchmark": "exec", "target": "cowrie", "why": "it was not there"}]
    assert [(goal["against"], goal["ratio"], goal["reached"]) for goal in document["goals"]] == [
        ("plain", 2.5, False),
        ("sshd", 0.125, True),
    ]
    assert document["machine"] == FACTS


def test_the_facts_of_a_machine_do_not_name_it() -> None:
    facts = report.machine()
    assert set(facts) == {
        "processor", "cores", "memory_bytes", "load", "kernel", "python", "openssh", "docker", "asyncssh", "cowrie",
    }  # fmt: skip
    assert platform.node() not in json.dumps(facts)


@pytest.mark.parametrize(("load", "warned"), [(0.1, False), (0.49, False), (0.5, True), (7.0, True)])
def test_a_busy_machine_is_told(load: float, warned: bool) -> None:
    text = report.text(TITLES, RESULTS, NOTES, {"load": load, "cores": 2}, quick=False)
    assert ("busy" in text) is warned
