"""What the analysis found, read from an index on disk."""

from datetime import timedelta

import pytest

from hermes.analysis import findings, keys
from hermes.analysis.reader import IndexReader
from hermes.errors import AnalysisError
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.test_scans import KEY
from tests.unit.analysis.world import artifact, attack

PLANT = f'echo "{KEY} x">>.ssh/authorized_keys'
FINGERPRINT = keys.fingerprint(KEY) or ""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> IndexReader:
    settings = left_by(
        tmp_path_factory.mktemp("sensor"),
        *attack("alone", "uname -a; cat /etc/shadow"),
        *attack("planter", PLANT, "whoami", more=[artifact("a" * 64, path="/tmp/miner"), artifact("broken")]),
        *attack("returner", key=FINGERPRINT, address="192.0.2.99", more=[artifact("a" * 64, path="/root/again")]),
    )
    return IndexReader(settings.index_path)


def test_techniques_with_their_evidence(index: IndexReader) -> None:
    found = {it.rule: it for it in findings.techniques(index, "alone")}
    assert set(found) == {"unix-shell", "system-information", "shadow-read"}
    assert found["shadow-read"].technique == "T1003.008"
    (evidence,) = found["shadow-read"].evidence
    assert evidence.text == "cat /etc/shadow"
    assert index.commands("alone")[0].id == evidence.event_id
    assert findings.techniques(index, "nobody") == []


def test_numbers_and_sessions_of_a_technique(index: IndexReader) -> None:
    counts = dict(findings.technique_counts(index))
    assert counts["T1059.004"] == 2
    assert counts["T1098.004"] == 1
    assert [it.session_id for it in findings.sessions_showing(index, "T1059.004", 9)] == ["planter", "alone"]
    assert [it.session_id for it in findings.sessions_showing(index, "T1098", 9)] == ["planter"]
    assert [it.session_id for it in findings.sessions_showing(index, "T1059", 1)] == ["planter"]


def test_what_came_back_is_told_of_both_sessions(index: IndexReader) -> None:
    (back,) = findings.returns(index, "returner")
    assert (back.kind, back.value, back.earlier_session, back.accepted) == ("returning-key", FINGERPRINT, "planter", True)
    assert findings.returns(index, "planter") == [back]
    assert findings.returns(index, "alone") == []


def test_files_as_they_were_looked_at(index: IndexReader) -> None:
    (path, file), (_, broken) = findings.session_files(index, "planter")
    assert (path, file.state, file.mime) == ("/tmp/miner", "done", "application/x-executable")
    assert [(it.namespace, it.rule, it.patterns) for it in file.matches] == [("own", "a" * 64, ["$a"])]
    assert (broken.state, broken.failure) == ("failed", "the analysis was killed: SIGSEGV")
    assert findings.file(index, "a" * 64) == file
    assert findings.file(index, "b" * 64) is None


def test_campaigns_and_their_reasons(index: IndexReader) -> None:
    (campaign,) = findings.campaigns(index, 9)
    assert (campaign.sessions, campaign.addresses) == (2, 2)
    assert {(it.kind, it.sessions) for it in campaign.reasons} == {("key", 2), ("payload", 2)}
    found, members = findings.campaign(index, campaign.id)
    assert found == campaign
    assert [it.session_id for it in members] == ["returner", "planter"]
    assert findings.campaign_of(index, "returner") == campaign.id
    assert findings.campaign_of(index, "alone") is None
    assert findings.campaigns(index, 9, since=campaign.last + timedelta(seconds=1)) == []


def test_any_name_a_campaign_had_leads_to_it_and_others_to_nothing(index: IndexReader) -> None:
    (campaign,) = findings.campaigns(index, 9)
    ((later,),) = index.query("SELECT session FROM campaigns WHERE session_id = 'returner'")
    ((alone,),) = index.query("SELECT session FROM campaigns WHERE session_id = 'alone'")
    assert findings.campaign(index, f"c{later}")[0] == campaign
    for name in ("C999999", f"C{alone}", "Cx", "", "C" + "9" * 40, "C1; DROP TABLE campaigns"):
        with pytest.raises(AnalysisError, match="campaign"):
            findings.campaign(index, name)
