"""Facts without end are stated a few at a time, and none is lost."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.events import ConnectionRefused, LimitReached
from hermes.server.reports import Report, Reports


def fact(limit: str = "server.max_connections", source: str = "192.0.2.1") -> LimitReached:
    return LimitReached(limit=limit, value=1, source_ip=source)


def said(events: list[Report]) -> list[int]:
    return [event.suppressed for event in events]


def test_the_first_is_said_at_once_and_the_others_after_the_interval() -> None:
    reports = Reports(10)
    assert said(reports.take(0, "a", "s", fact())) == [0]
    for second in range(1, 6):
        assert reports.take(second, "a", "s", fact(source=f"192.0.2.{second}")) == []
    assert reports.next_due == 10
    assert reports.due(9.9) == []
    (last,) = reports.due(10)
    assert (last.source_ip, last.suppressed) == ("192.0.2.5", 4)
    assert reports.due(20) == []
    assert len(reports) == 0
    assert reports.next_due is None


def test_other_kinds_and_sources_have_their_own_say() -> None:
    reports = Reports(10)
    for kind in ("a", "b"):
        for source in ("s", "t"):
            assert said(reports.take(0, kind, source, fact())) == [0]
            assert said(reports.take(0, kind, source, fact())) == []


def test_without_an_interval_all_are_said() -> None:
    reports = Reports(0)
    assert [said(reports.take(0, "a", "s", fact())) for _ in range(3)] == [[0]] * 3
    assert len(reports) == 0


def test_beyond_the_room_there_is_one_for_all() -> None:
    reports = Reports(10, room=2)
    assert [said(reports.take(0, "a", source, fact())) for source in "stuvw"] == [[0], [0], [0], [], []]
    assert said(reports.due(10)) == [1]


@pytest.mark.parametrize("event", [fact(), ConnectionRefused(source_ip="192.0.2.1", source_port=1, reason="x")])
def test_every_kind_of_report_keeps_what_it_says(event: Report) -> None:
    reports = Reports(10)
    reports.take(0, "a", "s", event)
    reports.take(1, "a", "s", event)
    reports.take(2, "a", "s", event)
    (last,) = reports.flush()
    assert last.suppressed == 1
    assert {name: getattr(last, name) for name in last.__struct_fields__ if name != "suppressed"} == {
        name: getattr(event, name) for name in event.__struct_fields__ if name != "suppressed"
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.floats(0, 8)), max_size=200))
def test_nothing_is_lost_and_little_is_said(facts: list[tuple[str, int, float]]) -> None:
    interval, room = 10, 4
    reports = Reports(interval, room)
    now, told = 0.0, list[tuple[float, Report]]()
    for kind, source, pause in facts:
        now += pause
        told += [(now, event) for event in reports.take(now, kind, source, fact(limit=kind))]
        assert len(reports) <= room + 2
    told += [(now, event) for event in reports.flush()]
    counts = Counter(kind for kind, _, _ in facts)
    for kind, count in counts.items():
        assert sum(1 + event.suppressed for _, event in told if isinstance(event, LimitReached) and event.limit == kind) == count
    for start, _ in told:
        assert sum(start <= moment < start + interval for moment, _ in told) <= 3 * (room + 2)
