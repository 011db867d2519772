"""`scripts/bench`: start the servers, measure them round by round, print tables and verdicts.

Exit status: 0 when everything chosen was measured (goals reached or not), 1 when something could not be, 2 for wrong usage.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from bench import report
from bench.measures import BENCHMARKS, FULL, QUICK, Benchmark, Scale
from bench.stats import number
from bench.targets import TARGETS, Target, Unavailable, add_user, remove_user

CORES = 2
"""The goals are for two cores, load included; on a larger machine all that runs is held on two."""


def say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)


class Run:
    """One run: its figures, and why some are missing."""

    def __init__(self, work: Path, scale: Scale, targets: list[str], rounds: int) -> None:
        self.work, self.scale, self.chosen, self.rounds = work, scale, targets, rounds
        self.results: report.Results = {}
        self.notes: dict[tuple[str, str], str] = {}
        self._up: dict[str, Target] = {}

    def benchmark(self, benchmark: Benchmark) -> None:
        """Measure every chosen target, round by round, each server in turn."""
        names = [name for name in benchmark.targets if name in self.chosen]
        for turn in range(1 if benchmark.once else self.rounds):
            for name in names:
                if (benchmark.name, name) in self.notes:
                    continue
                begin = time.monotonic()
                try:
                    figures = benchmark.measure(self._target(name, benchmark.pool(self.scale)), self.scale)
                except Unavailable as error:
                    self.notes[benchmark.name, name] = str(error)
                    say(f"{benchmark.name}: {name}: {error}")
                    if name in self._up:
                        say(f"the log of {name} ends: {self._up[name].last_words()}")
                    continue
                for metric, value in figures.items():
                    self.results.setdefault((benchmark.name, name, metric), []).append(value)
                told = ", ".join(f"{metric} {number(value)}" for metric, value in figures.items())
                say(f"{benchmark.name} {turn + 1}: {name}: {told} ({time.monotonic() - begin:.0f} s)")

    def _target(self, name: str, pool: int) -> Target:
        """The running server of this name, started anew when another pool size is wanted."""
        target = self._up.get(name)
        if target is not None and target.pooled and target.pool != pool:
            self._up.pop(name).stop()
            target = None
        if target is None:
            target = TARGETS[name](self.work, pool=pool)
            say(f"starting {name}")
            target.start()
            self._up[name] = target
        return target

    def stop(self) -> None:
        """End every server."""
        while self._up:
            name, target = self._up.popitem()
            try:
                target.stop()
            except Unavailable as error:
                say(f"{name}: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure Hermes side by side with OpenSSH, Cowrie and a plain server."
    )
    parser.add_argument("name", nargs="*", help=f"benchmarks: {', '.join(BENCHMARKS)} (all)")
    parser.add_argument("--targets", default=",".join(TARGETS), help="servers, with commas between (all: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--rounds", type=int, help="rounds; figures are medians over them (5; quick: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and verdicts there too")
    options = parser.parse_args()
    options.targets = options.targets.split(",")
    if options.json is not None:
        options.json = Path(os.environ.get("HERMES_BENCH_CALLER", ".")) / options.json
    for kind, given, known in (("benchmark", options.name, BENCHMARKS), ("target", options.targets, TARGETS)):
        for unknown in set(given) - known.keys():
            parser.error(f"no {kind} {unknown}; there are {', '.join(known)}")
    if options.rounds is not None and not 1 <= options.rounds <= 100:
        parser.error("--rounds takes 1 to 100")
    return options


def terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        say("must run as root: it starts sshd and boxes, and makes a throw-away user")
        return 2
    signal.signal(signal.SIGTERM, terminated)
    facts = report.machine()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    scale = QUICK if options.quick else FULL
    chosen = {name: benchmark for name, benchmark in BENCHMARKS.items() if name in (options.name or BENCHMARKS)}
    titles = {name: benchmark.title for name, benchmark in chosen.items()}
    with tempfile.TemporaryDirectory(prefix="hermes-bench-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        work.chmod(0o755)
        run = Run(work, scale, options.targets, options.rounds or scale.rounds)
        add_user()
        try:
            for benchmark in chosen.values():
                run.benchmark(benchmark)
        except KeyboardInterrupt:
            say("interrupted; what was measured until now:")
            run.notes["run", "all"] = "interrupted"
        finally:
            run.stop()
            remove_user()
    print(report.text(titles, run.results, run.notes, facts, quick=options.quick), end="")
    if options.json is not None:
        data = report.document(titles, run.results, run.notes, facts, quick=options.quick)
        options.json.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return 1 if run.notes else 0


if __name__ == "__main__":
    sys.exit(main())
