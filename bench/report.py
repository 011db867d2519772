"""A run's results: as tables with verdicts for people, as JSON for whoever compares runs."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.goals import GOALS, Key, Verdict, judge
from bench.stats import median, number

Results = dict[Key, list[float]]
"""One figure a round."""
QUIET = 0.25
"""Load average for each core below which a machine counts as idle."""


def rows(benchmark: str, results: Mapping[Key, list[float]]) -> tuple[list[str], list[list[str]]]:
    """A benchmark's table: metric names in the order they came, a row of medians a target, a dash where one is missing."""
    targets = list(dict.fromkeys(target for name, target, _ in results if name == benchmark))
    metrics = list(dict.fromkeys(metric for name, _, metric in results if name == benchmark))
    body = []
    for target in targets:
        cells = [results.get((benchmark, target, metric)) for metric in metrics]
        body.append([target, *(number(median(cell)) if cell else "–" for cell in cells)])
    return metrics, body


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Columns lined up: the first to the left, figures to the right."""
    lines = [list(header), *map(list, body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def verdicts(results: Mapping[Key, list[float]], benchmarks: Iterable[str]) -> list[Verdict]:
    """How the goals of these benchmarks stand."""
    names = set(benchmarks)
    return [judge(goal, results) for goal in GOALS if goal.benchmark in names]


def busy(facts: Mapping[str, Any]) -> str | None:
    """A warning where the machine had other work before the run began, None where it was quiet."""
    if facts["load"] < QUIET * facts["cores"]:
        return None
    return f"The machine was busy before the run began (load {facts['load']:.1f}): its figures are worth little."


def text(
    titles: Mapping[str, str],
    results: Mapping[Key, list[float]],
    notes: Mapping[tuple[str, str], str],
    facts: Mapping[str, Any],
    *,
    quick: bool,
) -> str:
    """The whole report. `titles` by benchmark name; `notes` by (benchmark, target): why one is missing; `facts`: `machine()`."""
    parts = []
    for benchmark, title in titles.items():
        metrics, body = rows(benchmark, results)
        part = [f"── {benchmark}: {title}"]
        if body:
            part.append(table(["", *metrics], body))
        part += [f"   {target}: not measured: {why}" for (name, target), why in notes.items() if name == benchmark]
        parts.append("\n".join(part))
    goals = verdicts(results, titles)
    reached = sum(verdict.reached is True for verdict in goals)
    known = sum(verdict.reached is not None for verdict in goals)
    parts.append(
        "\n".join([f"── goals: {reached} of {known} measured reached, {len(goals) - known} not measured", *map(str, goals)])
    )
    if (warning := busy(facts)) is not None:
        parts.append(warning)
    if quick:
        parts.append("A quick run: it shows that everything works. Its figures are too few to mean anything.")
    return "\n\n".join(parts) + "\n"


def _first_line(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if "OpenSSH" in line or "version" in line), None)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def machine() -> dict[str, Any]:
    """What the figures depend on, as it is now; nothing that names the machine or its paths."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssh": _first_line("sshd", "-V"),
        "docker": _first_line("dockerd", "--version"),
        "asyncssh": _installed("asyncssh"),
        "cowrie": _installed("cowrie"),
    }


def document(
    titles: Mapping[str, str],
    results: Mapping[Key, list[float]],
    notes: Mapping[tuple[str, str], str],
    facts: Mapping[str, Any],
    *,
    quick: bool,
) -> dict[str, Any]:
    """The report as plain data: every round's figure, medians, verdicts."""
    figures: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in titles}
    for (benchmark, target, metric), rounds in results.items():
        figures[benchmark].setdefault(target, {})[metric] = {"median": median(rounds), "rounds": rounds}
    return {
        "format": 1,
        "taken": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "quick": quick,
        "machine": dict(facts),
        "benchmarks": figures,
        "missing": [{"benchmark": benchmark, "target": target, "why": why} for (benchmark, target), why in notes.items()],
        "goals": [
            {
                "benchmark": verdict.goal.benchmark,
                "metric": verdict.goal.metric,
                "target": verdict.goal.subject,
                "relation": verdict.goal.relation,
                "bound": verdict.goal.bound,
                "against": verdict.goal.against,
                "measured": verdict.measured,
                "reference": verdict.reference,
                "ratio": verdict.ratio,
                "reached": verdict.reached,
            }
            for verdict in verdicts(results, titles)
        ],
    }
