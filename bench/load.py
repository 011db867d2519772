"""The load: what the client does to a server, in a process of its own.

    python -m bench.load < JOB.json

A job is one of the records below as a line of JSON, `{"kind": "Latency", "server": {…}, …}`; the answer is one JSON object on
standard output.
`Idle` answers when all sessions stand, and holds them until its standard input is closed.
"""

import gc
import json
import re
import selectors
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from bench.packets import SSHError
from bench.ssh import Channel, Connection

PROMPT = re.compile(rb"[#$] $")
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
LINE = "0123456789abcdef" * 4
KEYS_A_LINE = 40


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where to connect and as whom."""

    port: int
    user: str
    password: str
    quickack: bool = True


@dataclass(frozen=True, kw_only=True)
class Latency:
    """`count` logins one after the other, `gap` seconds apart, each timed from before connect to the shell's prompt, or to
    the exit status of `command`."""

    server: Server
    count: int
    gap: float
    command: str | None = None
    warmup: int = 2


@dataclass(frozen=True, kw_only=True)
class Failed:
    """`count` logins with a wrong password, `parallel` at a time."""

    server: Server
    count: int
    parallel: int = 8


@dataclass(frozen=True, kw_only=True)
class Stream:
    """`size` bytes of text from one command, through a plain channel or a pty."""

    server: Server
    size: int
    pty: bool


@dataclass(frozen=True, kw_only=True)
class Echo:
    """`sessions` shells, each typing `rate` keys a second for `seconds`."""

    server: Server
    sessions: int
    rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bots:
    """`rate` sessions a second for `seconds`: connect, log in, run `commands` one after the other, leave."""

    server: Server
    rate: float
    seconds: float
    commands: tuple[str, ...] = ("uname -a", "cat /proc/cpuinfo | grep name | wc -l")


@dataclass(frozen=True, kw_only=True)
class Idle:
    """`count` shells at their prompt, held until standard input closes."""

    server: Server
    count: int


Job: TypeAlias = Latency | Failed | Stream | Echo | Bots | Idle
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Latency, Failed, Stream, Echo, Bots, Idle)}
FAULTS = (OSError, SSHError)


def encode(job: Job) -> bytes:
    """A job as one line."""
    return json.dumps({"kind": type(job).__name__, **asdict(job)}).encode() + b"\n"


def decode(text: bytes) -> Job:
    """Read a job. KeyError or TypeError when it is none."""
    fields = json.loads(text)
    kind = KINDS[fields.pop("kind")]
    job: Job = kind(**{**fields, "server": Server(**fields["server"])})
    return job


def at_prompt(tail: bytes) -> bool:
    """Whether output ends with a shell's prompt (terminal control apart)."""
    return PROMPT.search(CONTROL.sub(b"", tail)) is not None


def _connect(server: Server) -> Connection:
    connection = Connection(("127.0.0.1", server.port), quickack=server.quickack)
    try:
        if not connection.authenticate(server.user, server.password):
            raise SSHError("login refused")
    except BaseException:
        connection.socket.close()
        raise
    return connection


def _wait_prompt(connection: Connection, channel: Channel) -> None:
    while not at_prompt(channel.tail):
        if channel.closed:
            raise SSHError("the shell ended before its prompt")
        connection.pump()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def latency(job: Latency) -> dict[str, Any]:
    samples: list[float] = []
    client: list[float] = []
    faults: Counter[str] = Counter()
    for turn in range(job.warmup + job.count):
        time.sleep(job.gap)
        gc.collect()
        cpu, start = time.process_time(), time.perf_counter()
        try:
            with _connect(job.server) as connection:
                channel = connection.start(job.command, pty=job.command is None)
                if job.command is None:
                    _wait_prompt(connection, channel)
                else:
                    while channel.status is None:
                        if channel.closed:
                            raise SSHError("no exit status")
                        connection.pump()
                elapsed = time.perf_counter() - start
        except FAULTS as error:
            faults[_describe(error)] += 1
            continue
        if turn >= job.warmup:
            samples.append(elapsed * 1000)
            client.append((time.process_time() - cpu) * 1000)
    return {"ms": samples, "client_cpu_ms": client, "faults": faults}


def failed(job: Failed) -> dict[str, Any]:
    def one(_: int) -> str:
        try:
            with Connection(("127.0.0.1", job.server.port), quickack=job.server.quickack) as connection:
                return "accepted" if connection.authenticate(job.server.user, "not-" + job.server.password) else "failed"
        except FAULTS as error:
            return _describe(error)

    with ThreadPoolExecutor(job.parallel) as threads:
        outcomes = Counter(threads.map(one, range(job.count)))
    done = outcomes.pop("failed", 0)
    return {"done": done, "faults": outcomes}


def stream(job: Stream) -> dict[str, Any]:
    with _connect(job.server) as connection:
        start = time.perf_counter()
        channel = connection.start(f"yes {LINE} | head -c {job.size}", pty=job.pty)
        connection.wait_closed(channel)
        elapsed = time.perf_counter() - start
    if channel.received < job.size or channel.status != 0:
        raise SSHError(f"{channel.received} of {job.size} bytes came, exit status {channel.status}")
    return {"bytes": channel.received, "seconds": elapsed}


class Typist:
    """One shell at which somebody types: a key at each due time, its echo timed, the line wiped now and then."""

    def __init__(self, connection: Connection, channel: Channel, due: float, interval: float) -> None:
        self.connection, self.channel = connection, channel
        self.due, self.interval = due, interval
        self.pressed: float | None = None
        self.keys = 0
        self.samples: list[float] = []
        self.late = 0

    def press(self, now: float) -> None:
        """Press the key that is due. A key whose predecessor's echo is still out waits for its next turn and counts as late."""
        self.due += self.interval
        if self.pressed is not None:
            self.late += 1
            return
        self.keys += 1
        if self.keys % KEYS_A_LINE == 0:
            self.connection.type(self.channel, b"\x15")
        else:
            self.pressed = time.perf_counter()
            self.connection.type(self.channel, b"a")

    def hear(self) -> None:
        """Take in what the socket has."""
        before = self.channel.received
        self.connection.drain()
        if self.channel.received > before and self.pressed is not None:
            self.samples.append((time.perf_counter() - self.pressed) * 1000)
            self.pressed = None


def _open_shells(server: Server, count: int) -> list[tuple[Connection, Channel]]:
    shells = []
    for _ in range(count):
        connection = _connect(server)
        channel = connection.start(None, pty=True)
        _wait_prompt(connection, channel)
        shells.append((connection, channel))
    return shells


def echo(job: Echo) -> dict[str, Any]:
    shells = _open_shells(job.server, job.sessions)
    time.sleep(1.0)
    gc.collect()
    interval = 1 / job.rate
    begin = time.perf_counter() + 0.1
    typists = [Typist(c, ch, begin + interval * i / job.sessions, interval) for i, (c, ch) in enumerate(shells)]
    cpu = time.process_time()
    with selectors.DefaultSelector() as selector:
        for typist in typists:
            selector.register(typist.connection.socket, selectors.EVENT_READ, typist)
        turn = 0
        while (now := time.perf_counter()) < begin + job.seconds:
            typist = typists[turn % len(typists)]
            if typist.due <= now:
                typist.press(now)
                turn += 1
                continue
            for key, _ in selector.select(typist.due - now):
                key.data.hear()
    cpu = time.process_time() - cpu
    for connection, _ in shells:
        connection.close()
    samples = [sample for typist in typists for sample in typist.samples]
    return {"ms": samples, "late": sum(typist.late for typist in typists), "client_cpu": cpu / job.seconds}


def bots(job: Bots) -> dict[str, Any]:
    samples: list[float] = []
    faults: Counter[str] = Counter()
    lock = threading.Lock()

    def one() -> None:
        start = time.perf_counter()
        first: float | None = None
        try:
            with _connect(job.server) as connection:
                for command in job.commands:
                    channel = connection.start(command)
                    while not channel.closed:
                        connection.pump()
                        if first is None and channel.received:
                            first = time.perf_counter() - start
            if first is None:
                raise SSHError("no output")
        except FAULTS as error:
            with lock:
                faults[_describe(error)] += 1
            return
        with lock:
            samples.append(first * 1000)

    total = round(job.rate * job.seconds)
    begin = time.perf_counter()
    with ThreadPoolExecutor(64) as threads:
        for number in range(total):
            time.sleep(max(0.0, begin + number / job.rate - time.perf_counter()))
            threads.submit(one)
    return {"ms": samples, "sessions": total, "seconds": time.perf_counter() - begin, "faults": faults}


def idle(job: Idle) -> dict[str, Any]:
    shells = _open_shells(job.server, job.count)
    print(json.dumps({"standing": len(shells)}), flush=True)
    sys.stdin.buffer.read()
    for connection, _ in shells:
        connection.close()
    return {}


HANDLERS: dict[type[Any], Callable[[Any], dict[str, Any]]] = {
    Latency: latency,
    Failed: failed,
    Stream: stream,
    Echo: echo,
    Bots: bots,
    Idle: idle,
}


def main() -> int:
    job = decode(sys.stdin.buffer.readline())
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        answer = HANDLERS[type(job)](job)
    except FAULTS as error:
        answer = {"error": _describe(error)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
