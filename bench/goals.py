"""What is to be reached, and whether it is: a bound on a figure, alone or as a ratio to another server's in the same run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.stats import median, number

Key = tuple[str, str, str]
"""(benchmark, target, metric)"""


@dataclass(frozen=True)
class Goal:
    """`metric` of `subject` is to be at most, or at least, `bound` (times that of `against`)."""

    benchmark: str
    metric: str
    subject: str
    relation: Literal["≤", "≥"]
    bound: float
    against: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How a goal stands. `reached` and the figures are None when something was not measured."""

    goal: Goal
    measured: float | None
    reference: float | None
    reached: bool | None

    @property
    def ratio(self) -> float | None:
        """Measured over reference, None without both."""
        return self.measured / self.reference if self.measured is not None and self.reference else None

    def __str__(self) -> str:
        goal = self.goal
        wanted = f"{goal.relation} {number(goal.bound)}" + (f" × {goal.against}" if goal.against else "")
        line = f"{goal.benchmark:9} {goal.subject:13} {goal.metric:22} {wanted:24}"
        if self.measured is None or (goal.against is not None and self.reference is None):
            return f"  ?  {line} not measured"
        figures = number(self.measured)
        if self.reference is not None and self.ratio is not None:
            figures += f" / {number(self.reference)} = {number(self.ratio)}"
        return f"{'  ✓ ' if self.reached else '  ✗ '} {line} {figures}"


def _latency(benchmark: str, metric: str, subject: str, plain: float, sshd: float) -> tuple[Goal, ...]:
    return Goal(benchmark, metric, subject, "≤", plain, "plain"), Goal(benchmark, metric, subject, "≤", sshd, "sshd")


GOALS: tuple[Goal, ...] = (
    *_latency("prompt", "p50 ms", "hermes-local", 1.4, 0.5),
    *_latency("prompt", "p95 ms", "hermes-local", 1.4, 0.5),
    *_latency("prompt", "p50 ms", "hermes-docker", 1.8, 0.6),
    *_latency("prompt", "p95 ms", "hermes-docker", 1.8, 0.6),
    *_latency("exec", "p50 ms", "hermes-local", 2.0, 0.25),
    Goal("failed", "CPU ms", "hermes-local", "≤", 1 / 12, "sshd"),
    Goal("failed", "CPU ms", "hermes-local", "≤", 0.7, "cowrie"),
    Goal("stream", "exec MB/s", "hermes-local", "≥", 0.5, "plain"),
    Goal("stream", "pty MB/s", "hermes-local", "≥", 0.9, "sshd"),
    Goal("echo", "p99 ms", "hermes-local", "≤", 2.0, "sshd"),
    Goal("bots", "refused", "hermes-local", "≤", 0),
    Goal("bots", "first output p95 ms", "hermes-local", "≤", 150),
    Goal("bots", "memory growth", "hermes-local", "≤", 1.05),
    Goal("idle", "KiB a session", "hermes-local", "≤", 60),
    Goal("idle", "MiB a warm box", "hermes-local", "≤", 4),
    Goal("idle", "warm boxes", "hermes-local", "≥", 200),
)


def judge(goal: Goal, results: Mapping[Key, list[float]]) -> Verdict:
    """Hold a goal against the medians of what was measured, one figure a round."""

    def figure(target: str) -> float | None:
        rounds = results.get((goal.benchmark, target, goal.metric))
        return median(rounds) if rounds else None

    measured = figure(goal.subject)
    reference = figure(goal.against) if goal.against is not None else None
    if measured is None or (goal.against is not None and reference is None):
        return Verdict(goal, measured, reference, None)
    limit = goal.bound * (reference if reference is not None else 1)
    return Verdict(goal, measured, reference, measured <= limit if goal.relation == "≤" else measured >= limit)
