"""What the journal costs: `python -m bench.journal [--logins N]` prints µs of CPU an event, on the event loop and in total.

Failed logins, six events each, are stated on an event loop: paced as by so many bots a second, in one burst, and beside a loop
that is busy computing. The figures are medians of several runs; CPU is this process's own, idle rounds of the loop taken off.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hermes import events
from hermes.store import Journal

ROUNDS = 5
_KEX = ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"]
_KEYS = ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]
_CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"]
_MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256", "hmac-sha1", "hmac-sha1-96"]


@dataclass(frozen=True)
class Cost:
    """µs an event: `emit` on the event loop's thread, `total` of the whole process; `lag` ms from the last emit to its commit."""

    emit: float
    total: float
    lag: float


def failed_login() -> list[events.Event]:
    """Return what one bot with a wrong password causes."""
    c = uuid.uuid4().hex
    return [
        events.ConnectionOpened(connection_id=c, source_ip="198.51.100.7", source_port=4001, local_ip="192.0.2.1", local_port=22),
        events.ClientVersion(connection_id=c, version="SSH-2.0-Go"),
        events.ClientAlgorithms(
            connection_id=c, hassh="98ddc5604ef6a1006a2b49a58759fbe6", kex=_KEX, host_key=_KEYS, encryption=_CIPHERS, mac=_MACS,
            compression=["none"], languages=[],
        ),
        events.AuthAttempt(connection_id=c, method="none", username="root", accepted=False, rule="denied"),
        events.AuthAttempt(connection_id=c, method="password", username="root", password="123456", accepted=False, rule="denied"),
        events.ConnectionClosed(connection_id=c, cause="client", duration=0.25, auth_attempts=2, channels=0),
    ]  # fmt: skip


async def _run(logins: int, rate: float | None, busy: bool, emit: Callable[[events.Event], None]) -> float:
    """Emit; return the thread's CPU seconds spent in `emit`. `busy`: compute for as long as a handshake takes between logins."""
    spent = 0.0
    begun = time.monotonic()
    for number in range(logins):
        facts = failed_login()
        start = time.thread_time()
        for fact in facts:
            emit(fact)
        spent += time.thread_time() - start
        if busy:
            until = time.thread_time() + 0.0006
            while time.thread_time() < until:
                pass
        if rate is not None:
            await asyncio.sleep(max(0.0, begun + (number + 1) / rate - time.monotonic()))
        elif number % 50 == 49:
            await asyncio.sleep(0)
    return spent


def measure(logins: int, rate: float | None, *, busy: bool, lines: bool) -> Cost:
    """Return the cost of one run, less what the same loop costs without a journal."""

    async def with_journal() -> tuple[float, float, float]:
        with tempfile.TemporaryDirectory(prefix="hermes-bench-") as scratch:
            journal = Journal(Path(scratch, "journal.db"), sensor="bench", lines=Path(scratch, "events.jsonl") if lines else None)
            journal.open()
            start = time.process_time()
            spent = await _run(logins, rate, busy, journal.emit)
            last = time.monotonic()
            await journal.wait_written()
            lag, total = time.monotonic() - last, time.process_time() - start
            journal.close()
            return spent, total, lag

    async def without() -> tuple[float, float]:
        start = time.process_time()
        spent = await _run(logins, rate, busy, lambda _: None)
        return spent, time.process_time() - start

    idle, idle_total = asyncio.run(without())
    spent, total, lag = asyncio.run(with_journal())
    count = logins * 6
    return Cost((spent - idle) / count * 1e6, (total - idle_total) / count * 1e6, lag * 1e3)


def main() -> None:
    """Print a table of costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logins", type=int, default=1000, help="failed logins a run")
    logins = parser.parse_args().logins
    print(f"{'':34} {'emit µs':>8} {'total µs':>9} {'lag ms':>7}")
    for name, rate, busy, lines in (
        ("20 logins a second", 20.0, False, False),
        ("500 logins a second", 500.0, False, False),
        ("500 a second, JSON lines", 500.0, False, True),
        ("one burst", None, False, False),
        ("one burst, JSON lines", None, False, True),
        ("busy loop", None, True, False),
        ("busy loop, JSON lines", None, True, True),
    ):
        count = min(logins, 120) if rate == 20 else logins
        costs = [measure(count, rate, busy=busy, lines=lines) for _ in range(ROUNDS)]
        emit, total, lag = (statistics.median(getattr(cost, field) for cost in costs) for field in ("emit", "total", "lag"))
        print(f"{name:34} {emit:8.1f} {total:9.1f} {lag:7.1f}")


if __name__ == "__main__":
    main()
