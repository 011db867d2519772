"""Metrics: named as Prometheus wants it, true to the events, and never in an attacker's words."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as _parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as _parse_text

from hermes import events
from hermes.metrics import CATALOGUE, Metric, Metrics, State
from hermes.store.cursors import Cursor, Standing
from tests.unit.test_events import made

parse_text: Any = _parse_text
parse_openmetrics: Any = _parse_openmetrics

WELL = State(
    listening=True, connections=7, unauthenticated=4, sessions=3, channels=5, journal_healthy=True, journal_waiting=2,
    containers={"warm": 3, "creating": 1, "active": 2, "stopped": 9}, index_lag=12,
    outputs=[
        Standing(name="siem", cursor=Cursor(id=5, delivered=4, missed=2, failing_since=7.0), lag=3),
        Standing(name="new", cursor=None, lag=None),
    ],
)  # fmt: skip


def samples(metrics: Metrics, state: State = WELL) -> dict[tuple[str, str], float]:
    """Every sample by its name and labels, as a scraper reads them."""
    return {
        (it.name, ",".join(f"{name}={value}" for name, value in sorted(it.labels.items()))): it.value
        for family in parse_text(metrics.text(state).decode())
        for it in family.samples
    }


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda it: it.name)
def test_names_follow_the_convention(metric: Metric) -> None:
    assert re.fullmatch(r"hermes(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    assert metric.meaning.endswith(".")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert (metric.read is not None) == (metric.kind == "gauge")


def test_names_are_there_once() -> None:
    assert len({it.name for it in CATALOGUE}) == len(CATALOGUE)


def test_every_metric_is_shown_once_something_happened() -> None:
    metrics = Metrics()
    for kind in events.ALL.values():
        metrics.count(made(kind))
    text = metrics.text(WELL).decode()
    for metric in CATALOGUE:
        family = f"# TYPE {metric.name} {metric.kind}"
        assert family in text.splitlines()
        assert re.search(rf"^{metric.name}(_count)?(\{{.*\}})? [0-9.e+]+$", text, re.MULTILINE), metric.name


def test_both_formats_can_be_read() -> None:
    metrics = Metrics()
    metrics.count(events.ConnectionOpened(source_ip="192.0.2.1", source_port=1, local_ip="192.0.2.2", local_port=22))
    families = {it.name for it in parse_openmetrics(metrics.text(WELL, openmetrics_format=True).decode())}
    assert families == {it.name for it in parse_text(metrics.text(WELL).decode())}
    assert {it.name.removesuffix("_total") for it in CATALOGUE} <= families


@pytest.mark.parametrize("tag", events.ALL)
def test_every_event_is_counted_by_its_name(tag: str) -> None:
    metrics = Metrics()
    assert samples(metrics)["hermes_events_total", f"event={tag}"] == 0
    for _ in range(3):
        metrics.count(made(events.ALL[tag]))
    assert samples(metrics)["hermes_events_total", f"event={tag}"] == 3


def test_what_was_suppressed_is_counted() -> None:
    metrics = Metrics()
    metrics.count(events.LimitReached(limit="server.max_connections", value=1))
    metrics.count(events.LimitReached(limit="server.max_connections", value=1, suppressed=41))
    metrics.count(events.ConnectionRefused(source_ip="192.0.2.1", source_port=1, reason="x", suppressed=9))
    found = samples(metrics)
    assert found["hermes_limit_reached_total", "limit=server.max_connections"] == 43
    assert found["hermes_connections_refused_total", ""] == 10


def test_what_events_tell_is_added_up() -> None:
    metrics = Metrics()
    for method, accepted in (("password", False), ("password", True), ("publickey", False), ("x11", False)):
        metrics.count(events.AuthAttempt(method=method, username="root", accepted=accepted, rule="denied"))
    for kind in ("shell", "exec", "exec"):
        metrics.count(events.ChannelStarted(channel=1, kind=kind))
    for count in (10, 20):
        metrics.count(events.ChannelClosed(channel=1, duration=1, bytes_in=count, bytes_out=count * 2))
    for waited in (0.002, 0.3):
        metrics.count(events.SessionContainer(container_id="c", engine="local", image="i", waited=waited))
    found = samples(metrics)
    assert found["hermes_auth_attempts_total", "accepted=false,method=password"] == 1
    assert found["hermes_auth_attempts_total", "accepted=true,method=password"] == 1
    assert found["hermes_auth_attempts_total", "accepted=false,method=publickey"] == 1
    assert found["hermes_auth_attempts_total", "accepted=false,method=other"] == 1
    assert found["hermes_channels_total", "kind=exec"] == 2
    assert (found["hermes_received_bytes_total", ""], found["hermes_sent_bytes_total", ""]) == (30, 60)
    assert found["hermes_allocation_wait_seconds_count", ""] == 2
    assert found["hermes_allocation_wait_seconds_sum", ""] == pytest.approx(0.302)
    assert found["hermes_allocation_wait_seconds_bucket", "le=0.0025"] == 1


def test_gauges_tell_what_is_and_nothing_of_what_nobody_knows() -> None:
    metrics = Metrics()
    found = samples(metrics)
    assert found["hermes_connections_open", ""] == 7
    assert found["hermes_connections_unauthenticated", ""] == 4
    assert found["hermes_sessions_open", ""] == 3
    assert found["hermes_containers", "state=warm"] == 3
    assert found["hermes_up", "part=broker"] == 1
    found = samples(metrics, State())
    assert not [name for name, _ in found if name == "hermes_containers"]
    assert found["hermes_up", "part=broker"] == 0


@settings(deadline=None, max_examples=30)
@given(st.text())
def test_no_text_of_an_attacker_becomes_a_label(text: str) -> None:
    metrics = Metrics()
    before = set(samples(metrics))
    metrics.count(events.AuthAttempt(method=text, username=text, accepted=False, rule=text, password=text))
    metrics.count(events.ChannelStarted(channel=1, kind=text, command=text))
    metrics.count(events.ConnectionClosed(cause=text, detail=text, duration=0, auth_attempts=0, channels=0))
    metrics.count(events.LimitReached(limit=text, value=1, detail=text))
    metrics.count(events.ClientVersion(version=text))
    known = {value for metric in CATALOGUE for values in metric.labels.values() for value in values} | {"other"}
    new = {labels for _, labels in set(samples(metrics)) - before}
    assert {part.partition("=")[2] for labels in new for part in labels.split(",") if part} <= known


def test_the_causes_are_those_that_are_written_down() -> None:
    assert events.ConnectionClosed.__doc__ is not None
    assert set(re.findall(r"`([a-z-]+)`", events.ConnectionClosed.__doc__)) - {"cause"} == set(events.CAUSES)


def test_how_outputs_do() -> None:
    found = {name: value for (name, labels), value in samples(Metrics()).items() if labels == "output=siem"}
    assert found == {
        "hermes_output_lag_events": 3.0, "hermes_output_delivered_events": 4.0, "hermes_output_missed_events": 2.0,
        "hermes_output_failing_since_seconds": 7.0,
    }  # fmt: skip
    assert not [it for it in samples(Metrics()) if "new" in it[1]]
