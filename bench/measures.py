"""The benchmarks: each drives one target once and returns its figures; `bench/__main__.py` interleaves the rounds."""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import procs
from bench.goals import GOALS
from bench.load import Bots, Echo, Failed, Idle, Job, Latency, Stream, encode
from bench.stats import growth, percentile
from bench.targets import PROJECT, Hermes, Target, Unavailable

Figures = dict[str, float]
"""Metric name -> value, of one round."""

SETTLE = 0.7
"""Seconds after a load until the server has done what it put off (reaped, flushed)."""


@dataclass(frozen=True)
class Scale:
    """How much of everything: a full run is the one whose figures count, a quick one shows that it works."""

    rounds: int
    logins: int
    gap: float
    failed: int
    stream: int
    echo_sessions: int
    echo_seconds: float
    bots_seconds: float
    idle: int


FULL = Scale(5, 20, 0.5, 200, 200_000_000, 50, 10, 120, 200)
QUICK = Scale(2, 4, 0.3, 20, 20_000_000, 10, 2, 6, 10)


class Client:
    """A job under way in a client process of its own; leaving the block ends it."""

    def __init__(self, job: Job, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        argv = [sys.executable, "-m", "bench.load"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, bufsize=0)
        self._send(encode(job))

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def answered(self, patience: float) -> bool:
        """Wait at most `patience` seconds for the answer; Unavailable when the job's time is up."""
        if time.monotonic() > self._deadline:
            raise Unavailable(f"the load did not end within {self._timeout:.0f} s")
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], patience)[0])

    def answer(self) -> dict[str, Any]:
        """Wait for the answer; Unavailable when the job failed or its time is up."""
        assert self._process.stdout is not None
        while not self.answered(1.0):
            pass
        # The answer is one write at the end of the work: what is left to wait for is milliseconds.
        line = bytearray()
        while not line.endswith(b"\n"):
            piece = self._process.stdout.read(65536)
            if not piece:
                raise Unavailable(f"the client ended with status {self._process.wait(10)}")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def let_go(self) -> None:
        """Have `Idle` close its sessions; return when it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.answer()


def load(job: Job, timeout: float) -> dict[str, Any]:
    """Run a job and return its answer; Unavailable when it failed or took longer than `timeout`."""
    with Client(job, timeout) as client:
        return client.answer()


def _whole(answer: dict[str, Any], wanted: int, got: int) -> None:
    """A figure from which failures were left out would lie: refuse it."""
    if got < wanted:
        raise Unavailable(f"{wanted - got} of {wanted} failed: {answer['faults']}")


def _latency(target: Target, scale: Scale, command: str | None, *, quickack: bool = True) -> Figures:
    target.warm(target.pool, 120)
    job = Latency(server=target.server(quickack=quickack), count=scale.logins, gap=scale.gap, command=command)
    answer = load(job, 60 + scale.logins * 5)
    samples = answer["ms"]
    _whole(answer, scale.logins, len(samples))
    return {
        "p50 ms": percentile(samples, 50),
        "p95 ms": percentile(samples, 95),
        "client CPU ms": percentile(answer["client_cpu_ms"], 50),
    }


def prompt(target: Target, scale: Scale) -> Figures:
    figures = _latency(target, scale, None)
    if target.name == "sshd":
        slow = _latency(target, scale, None, quickack=False)
        figures |= {f"{name}, no QUICKACK": slow[name] for name in ("p50 ms", "p95 ms")}
    return figures


def execute(target: Target, scale: Scale) -> Figures:
    figures = _latency(target, scale, "true")
    if target.name == "sshd":
        slow = _latency(target, scale, "true", quickack=False)
        figures |= {f"{name}, no QUICKACK": slow[name] for name in ("p50 ms", "p95 ms")}
    return figures


def failed(target: Target, scale: Scale) -> Figures:
    target.warm(target.pool, 120)
    load(Failed(server=target.server(), count=8), 60)
    time.sleep(SETTLE)
    before = target.cpu()
    answer = load(Failed(server=target.server(), count=scale.failed), 60 + scale.failed)
    _whole(answer, scale.failed, answer["done"])
    time.sleep(SETTLE)
    return {"CPU ms": (target.cpu() - before) * 1000 / scale.failed}


def stream(target: Target, scale: Scale) -> Figures:
    figures = {}
    for pty in (False, True):
        target.warm(target.pool, 120)
        answer = load(Stream(server=target.server(), size=scale.stream, pty=pty), 300)
        figures[f"{'pty' if pty else 'exec'} MB/s"] = answer["bytes"] / answer["seconds"] / 1e6
        target.tidy()
    return figures


def echo(target: Target, scale: Scale) -> Figures:
    target.warm(target.pool, 120)
    job = Echo(server=target.server(), sessions=scale.echo_sessions, rate=20, seconds=scale.echo_seconds)
    answer = load(job, 180 + scale.echo_seconds)
    samples = answer["ms"]
    if not samples:
        raise Unavailable("no echo came")
    keys = len(samples) + answer["late"]
    figures = {f"p{percent} ms": percentile(samples, percent) for percent in (50, 99)}
    return figures | {"late %": 100 * answer["late"] / keys, "client CPU %": 100 * answer["client_cpu"]}


def bots(target: Target, scale: Scale) -> Figures:
    target.warm(target.pool, 120)
    job = Bots(server=target.server(), rate=10, seconds=scale.bots_seconds)
    sizes: list[float] = []
    before = target.cpu()
    with Client(job, scale.bots_seconds + 120) as client:
        while not client.answered(1.0):
            sizes.append(procs.resident(target.processes()))
        answer = client.answer()
    samples = answer["ms"]
    if not samples:
        raise Unavailable(f"no bot got through: {answer['faults']}")
    return {
        "sessions": answer["sessions"],
        "refused": answer["sessions"] - len(samples),
        "first output p50 ms": percentile(samples, 50),
        "first output p95 ms": percentile(samples, 95),
        "CPU ms a session": (target.cpu() - before) * 1000 / answer["sessions"],
        "memory MiB": max(sizes) / 2**20,
        **({"memory growth": growth(sizes)} if len(sizes) >= 8 else {}),
    }


def idle(target: Target, scale: Scale) -> Figures:
    figures: Figures = {}
    if isinstance(target, Hermes):
        target.warm(target.pool, 600)
        time.sleep(SETTLE)
        standing = target.boxes()
        figures["warm boxes"] = len(standing)
        figures["MiB a warm box"] = sum(map(procs.memory, standing)) / len(standing) / 2**20
    figures["KiB a session"] = _session_memory(target, scale.idle) / 1024
    return figures


def _session_memory(target: Target, count: int) -> float:
    """Bytes that each of `count` idle shells costs the front, counted on top of a quarter as many: the first ones only fill what
    starting up and warming up left free.
    """

    def own() -> int:
        return procs.memory(target.front(), procs.written_of)

    timeout = 60 + 5 * count
    with Client(Idle(server=target.server(), count=count // 4), timeout) as first:
        first.answer()
        time.sleep(SETTLE)
        before = own()
        with Client(Idle(server=target.server(), count=count), timeout) as second:
            second.answer()
            time.sleep(SETTLE)
            cost = (own() - before) / count
            second.let_go()
        first.let_go()
    return cost


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: which targets it makes sense for, and whether it is repeated every round or, being long, done once."""

    name: str
    title: str
    measure: Callable[[Target, Scale], Figures]
    targets: tuple[str, ...]
    once: bool = False
    pool: Callable[[Scale], int] = lambda _: 10
    """Boxes kept warm meanwhile."""


_ALL = ("plain", "sshd", "cowrie", "hermes-local", "hermes-docker")
_REAL = ("plain", "sshd", "hermes-local", "hermes-docker")
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("prompt", "connect → first prompt byte", prompt, _ALL),
        Benchmark("exec", "exec `true`: connect → exit status", execute, _ALL),
        Benchmark("failed", "a failed login: the server's CPU", failed, _ALL),
        Benchmark("stream", "text through one channel", stream, _REAL),
        Benchmark("echo", "one keystroke's echo among busy sessions", echo, _REAL),
        Benchmark("bots", "bot sessions, 10 a second", bots, _REAL, once=True, pool=lambda _: 20),
        Benchmark("idle", "idle sessions and warm boxes", idle, _REAL, once=True, pool=lambda scale: scale.idle),
    )
}
assert {goal.benchmark for goal in GOALS} <= BENCHMARKS.keys()
