"""The metrics of a whole sensor: what an operator's monitoring sees."""

import http.client
import json
import signal

import pytest

from tests.sensors import Start, free_port, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_what_happens_is_seen_by_whoever_scrapes(start: Start) -> None:
    port = free_port()
    sensor = start(metrics__address=f"127.0.0.1:{port}")

    def get(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    status, health = get("/healthz")
    assert (status, json.loads(health)) == (200, {"listening": True, "journal": True, "broker": True})
    assert sensor.ssh("true").returncode == 0
    assert sensor.ssh("true", password="wrong").returncode != 0

    def lines() -> set[str]:
        return set(get("/metrics")[1].splitlines())

    wait_until(lambda: "hermes_session_duration_seconds_count 1.0" in lines())
    assert {
        'hermes_events_total{event="sensor.started"} 1.0',
        'hermes_events_total{event="pool.ready"} 1.0',
        "hermes_connections_total 2.0",
        "hermes_sessions_total 1.0",
        'hermes_channels_total{kind="exec"} 1.0',
        'hermes_auth_attempts_total{accepted="true",method="password"} 1.0',
        "hermes_allocation_wait_seconds_count 1.0",
    } <= lines()
    wait_until(lambda: 'hermes_containers{state="warm"} 2.0' in lines())
    assert sensor.stop(signal.SIGTERM) == 0
    assert "Traceback" not in sensor.said()
