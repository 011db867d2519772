"""Times of a session whose clock was set meanwhile."""

import pytest

from hermes.evidence.oneclock import OneClock, Stated
from hermes.store.streams import Step

SECOND = 1_000_000
T = 1_700_000_000 * SECOND


def test_without_a_step_times_are_as_stated() -> None:
    events = [Stated(1, T, "a.b"), Stated(2, T + 5, "process.started"), Stated(3, T + 3, "a.b")]
    assert OneClock([]).order(events) == [(T, 1), (T + 3, 3), (T + 5, 2)]


@pytest.mark.parametrize("jump", [3600 * SECOND, -3600 * SECOND, 700_000, -20_000])
def test_times_after_a_step_go_on_evenly(jump: int) -> None:
    clock = OneClock([Step(3, jump)])
    events = [Stated(1, T, "a.b"), Stated(2, T + 10, "a.b"), Stated(4, T + 20 + jump, "a.b"), Stated(5, T + 30 + jump, "a.b")]
    assert clock.order(events) == [(T, 1), (T + 10, 2), (T + 20, 4), (T + 30, 5)]


def test_steps_add_up() -> None:
    clock = OneClock([Step(2, 100 * SECOND), Step(4, -300 * SECOND)])
    events = [Stated(1, T, "a.b"), Stated(3, T + 1 + 100 * SECOND, "a.b"), Stated(5, T + 2 - 200 * SECOND, "a.b")]
    assert clock.order(events) == [(T, 1), (T + 1, 3), (T + 2, 5)]


@pytest.mark.parametrize("jump", [3600 * SECOND, -3600 * SECOND])
def test_what_happened_before_a_step_and_was_stated_after_it_stands_before_it(jump: int) -> None:
    clock = OneClock([Step(2, jump)])
    events = [
        Stated(1, T, "channel.started"),
        Stated(3, T + 1000, "process.started"),  # by the clock as it was
        Stated(4, T + 3000 + jump, "process.exited"),  # by the clock as it is
        Stated(5, T + 4000 + jump, "channel.closed"),
    ]
    assert clock.order(events) == [(T, 1), (T + 1000, 3), (T + 3000, 4), (T + 4000, 5)]


@pytest.mark.parametrize("jump", [3600 * SECOND, -3600 * SECOND])
def test_a_recording_starts_where_its_channel_did(jump: int) -> None:
    clock = OneClock([Step(2, jump)])
    assert clock.start(T + 500, T + 900) == T + 500
    assert clock.start(T + 8_000 + jump, T + 8_100) == T + 8_000
