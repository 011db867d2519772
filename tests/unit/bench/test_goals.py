import pytest
from bench.goals import GOALS, Goal, Key, judge
from bench.measures import BENCHMARKS

RATIO = Goal("exec", "p50 ms", "hermes-local", "≤", 2.0, "plain")
FLOOR = Goal("stream", "pty MB/s", "hermes-local", "≥", 0.9, "sshd")
ALONE = Goal("bots", "refused", "hermes-local", "≤", 0)


def results(goal: Goal, measured: list[float], reference: list[float] | None = None) -> dict[Key, list[float]]:
    found = {(goal.benchmark, goal.subject, goal.metric): measured}
    if reference is not None:
        assert goal.against is not None
        found[goal.benchmark, goal.against, goal.metric] = reference
    return found


def test_a_ratio_is_of_medians_not_of_lucky_rounds() -> None:
    verdict = judge(RATIO, results(RATIO, [1, 9, 6], [2, 3, 400]))
    assert (verdict.measured, verdict.reference, verdict.ratio) == (6, 3, 2.0)
    assert verdict.reached is True


def test_a_ratio_above_its_bound_is_missed() -> None:
    assert judge(RATIO, results(RATIO, [6.1], [3])).reached is False


@pytest.mark.parametrize(("measured", "reached"), [(27.0, True), (26.9, False)])
def test_a_floor_is_reached_from_above(measured: float, reached: bool) -> None:
    assert judge(FLOOR, results(FLOOR, [measured], [30.0])).reached is reached


@pytest.mark.parametrize(("refused", "reached"), [(0, True), (1, False)])
def test_a_bound_without_a_reference_stands_alone(refused: float, reached: bool) -> None:
    verdict = judge(ALONE, results(ALONE, [refused]))
    assert (verdict.reached, verdict.ratio) == (reached, None)


def test_nothing_measured_is_neither_reached_nor_missed() -> None:
    assert judge(RATIO, {}).reached is None
    assert judge(RATIO, results(RATIO, [6])).reached is None
    assert "not measured" in str(judge(RATIO, results(RATIO, [6])))


def test_a_verdict_shows_both_medians_and_the_ratio() -> None:
    line = str(judge(RATIO, results(RATIO, [9.0], [4.0])))
    assert "✗" in line
    assert "≤ 2 × plain" in line
    assert "9 / 4 = 2.25" in line


def test_every_goal_names_targets_that_its_benchmark_measures() -> None:
    for goal in GOALS:
        measured = BENCHMARKS[goal.benchmark].targets
        assert goal.subject in measured
        assert goal.against is None or goal.against in measured
