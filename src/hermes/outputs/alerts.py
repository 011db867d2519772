"""Which events make an alert. No I/O: from the same events and the same memory come the same alerts, with the same ids."""

import fnmatch
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from hermes.config.outputs import AlertConfig, AlertRule, Honeytoken
from hermes.outputs.sink import ALERT, Record

KEYS = 1000
"""Keys a rule that are remembered; the least recently seen are forgotten first."""
KEY_CHARACTERS = 256
_WORD = re.compile(r"[\s'\"=;|&<>(){}`,]+")

Memory = dict[str, Any]
Whence = Callable[[Record], str | None]


class _Seen:
    """What is remembered of one rule and key: when the latest matches were, when the last alert, and how many were suppressed."""

    __slots__ = ("alerted", "suppressed", "times")

    def __init__(self, times: list[float], alerted: float | None, suppressed: int) -> None:
        self.times = times
        self.alerted = alerted
        self.suppressed = suppressed


class Alerts:
    """The alerts of one output. `whence` tells from which address a record's connection came."""

    def __init__(self, alarms: Sequence[AlertConfig], whence: Whence) -> None:
        self._alarms = alarms
        self._matches = [_match(it, whence) for it in alarms]
        self._whence = whence
        self._seen: list[OrderedDict[str, _Seen]] = [OrderedDict() for _ in alarms]
        self._memory: Memory | None = None

    @property
    def most(self) -> int:
        """Alerts that one record can make."""
        return len(self._alarms)

    def take(self, record: Record) -> list[Record]:
        """Return the alerts that this record makes."""
        return [
            alert
            for number, alarm in enumerate(self._alarms)
            if (why := self._matches[number](record)) and (alert := self._count(number, alarm, record, why)) is not None
        ]

    def memory(self) -> Memory:
        """What `remember` takes to go on from here, as plain data of its own."""
        if self._memory is None:
            self._memory = {
                alarm.name: {key: [it.times[:], it.alerted, it.suppressed] for key, it in seen.items()}
                for alarm, seen in zip(self._alarms, self._seen, strict=True)
                if seen
            }
        return self._memory

    def remember(self, memory: Memory) -> None:
        """Go on from what `memory` returned; what rules that are gone remembered is forgotten."""
        self._seen = [
            OrderedDict((key, _Seen(list(it[0]), it[1], it[2])) for key, it in memory.get(alarm.name, {}).items())
            for alarm in self._alarms
        ]
        self._memory = None

    def _count(self, number: int, alarm: AlertConfig, record: Record, why: str) -> Record | None:
        self._memory = None
        count, within, by = _rate(alarm) if isinstance(alarm, AlertRule) else (1, 0.0, "source_ip")
        key = next(_texts(_value(record, by, self._whence)), "")[:KEY_CHARACTERS]
        seen, now = self._seen[number], record.time.timestamp()
        mine = seen.setdefault(key, _Seen([], None, 0))
        seen.move_to_end(key)
        if len(seen) > KEYS:
            seen.popitem(last=False)
        mine.times = [*(it for it in mine.times if abs(now - it) < within), now]
        if len(mine.times) < count:
            return None
        mine.times = []
        if mine.alerted is not None and abs(now - mine.alerted) < alarm.suppress:
            mine.suppressed += 1
            return None
        suppressed, mine.suppressed, mine.alerted = mine.suppressed, 0, now
        body = {
            "event": ALERT, "connection_id": record.connection_id, "session_id": record.session_id, "alert": alarm.name,
            "severity": alarm.severity, "reason": why, "by": by, "key": key, "count": count, "within": within,
            "suppressed": suppressed, "source_ip": self._whence(record), "cause": record.flat(),
        }  # fmt: skip
        return Record(
            event_id=f"{record.event_id}:{alarm.name}", id=record.id, time=record.time, sensor=record.sensor, event=ALERT,
            connection_id=record.connection_id, session_id=record.session_id, body=body,
        )  # fmt: skip


def goes_to(alarm: AlertConfig, output: str) -> bool:
    """Whether its alerts go to that output."""
    return alarm.output == output


def _rate(rule: AlertRule) -> tuple[int, float, str]:
    return rule.count, rule.within, rule.by


def _value(record: Record, field: str, whence: Whence) -> Any:
    if field == "sensor":
        return record.sensor
    found = record.body.get(field)
    return whence(record) if found is None and field == "source_ip" else found


def _texts(value: Any) -> Iterator[str]:
    """The texts a pattern is held against: those of a list one by one."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, dict):
        yield str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def _any(patterns: Sequence[str], texts: Iterator[str]) -> bool:
    return any(_pattern(pattern).match(text) for text in texts for pattern in patterns)


def _match(alarm: AlertConfig, whence: Whence) -> Callable[[Record], str]:
    """What tells why a record matches; empty for one that does not."""
    if isinstance(alarm, AlertRule):
        return _rule(alarm, whence)
    assert isinstance(alarm, Honeytoken)
    return _token(alarm)


def _rule(rule: AlertRule, whence: Whence) -> Callable[[Record], str]:
    def why(record: Record) -> str:
        if not _any(rule.events, iter((record.event,))):
            return ""
        if not all(_any(patterns, _texts(_value(record, field, whence))) for field, patterns in rule.where.items()):
            return ""
        return f"{rule.count} × {record.event} within {rule.within:g} s" if rule.count > 1 else record.event

    return why


def _token(token: Honeytoken) -> Callable[[Record], str]:
    def why(record: Record) -> str:
        body = record.body
        match record.event:
            case "auth.attempt" | "forward.login":
                secrets = {*_texts([body.get(it) for it in ("password", "new_password", "responses")])}
                user, secret = body.get("username") in token.usernames, not secrets.isdisjoint(token.passwords)
                if (user or not token.usernames) and (secret or not token.passwords) and (user or secret):
                    return "the credential was tried"
                return "the key was offered" if body.get("key_fingerprint") in token.keys else ""
            case "file.written" | "file.executed" | "file.changed" | "artifact.stored":
                if body.get("sha256") in token.hashes:
                    return "the file is there"
                return "the file was touched" if _any(token.paths, _texts(body.get("path"))) else ""
            case "channel.started" | "channel.input":
                return _named(token, [*_texts([body.get("command"), body.get("line")])])
            case "process.started":
                return _named(token, [*_texts([body.get("program"), body.get("argv")])])
        return ""

    return why


def _named(token: Honeytoken, texts: list[str]) -> str:
    """Why these words of an attacker use the token."""
    if any(it in text for text in texts for it in token.texts):
        return "the text was used"
    words = (word for text in texts for word in (text, *_WORD.split(text)))
    return "the file was named" if token.paths and _any(token.paths, words) else ""
