"""What a box and a process in it cost with the `local` engine. Run as root: `python -m bench.spawner --image ROOTFS`.

Makes boxes from an image's root file system one after the other, starts shells in each, and prints medians. CPU is that of the
engine and of everything it ran and reaped, as `getrusage` counts it, so it does not include what the boxes' own processes did.
"""

import argparse
import asyncio
import os
import resource
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hermes.broker import linux
from hermes.broker.engines.base import Box
from hermes.broker.engines.local import LocalEngine
from hermes.config.models import ContainerPoolConfig
from hermes.container.messages import MAX_MESSAGE, BoxReply, Spawn, Terminal, decode_box_reply, encode

STREAM = 200 * 1024 * 1024


@dataclass(frozen=True)
class _Image:
    rootfs: Path
    init: tuple[str, ...] = ("/bin/sleep", "infinity")


@dataclass
class _Samples:
    """Milliseconds, by what they measure; KiB for memory, MB/s for the stream."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def table(self) -> str:
        rows = [f"{'':32} {'median':>10} {'p95':>10} {'n':>5}"]
        for name, values in self.values.items():
            ordered = sorted(values)
            p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
            rows.append(f"{name:32} {statistics.median(values):10.2f} {p95:10.2f} {len(values):5}")
        return "\n".join(rows)


async def _receive(box: socket.socket) -> tuple[BoxReply, list[int]]:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(box, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(box)
    packet, fds = linux.receive_fds(box, MAX_MESSAGE, 4)
    return decode_box_reply(packet), fds


async def _spawn(box: socket.socket, request: Spawn) -> list[int]:
    await asyncio.get_running_loop().sock_sendall(box, encode(request))
    return (await _receive(box))[1]


def _read_until(fd: int, mark: bytes) -> None:
    data = b""
    while mark not in data:
        data += os.read(fd, 65536)


def _drain(fd: int) -> int:
    total = 0
    while chunk := os.read(fd, 1 << 20):
        total += len(chunk)
    return total


async def _shell(box: socket.socket, samples: _Samples, number: int) -> None:
    started = time.perf_counter()
    (master,) = await _spawn(box, Spawn(id=number, terminal=Terminal()))
    samples.add("request to pty fd, ms", (time.perf_counter() - started) * 1e3)
    await asyncio.to_thread(_read_until, master, b"# ")
    samples.add("request to prompt, ms", (time.perf_counter() - started) * 1e3)
    os.write(master, b"exit\n")
    await _receive(box)
    os.close(master)


async def _exec(box: socket.socket, samples: _Samples, number: int) -> None:
    started = time.perf_counter()
    fds = await _spawn(box, Spawn(id=number, argv=(b"/bin/true",)))
    samples.add("request to pipe fds, ms", (time.perf_counter() - started) * 1e3)
    await _receive(box)
    samples.add("request to exit of true, ms", (time.perf_counter() - started) * 1e3)
    for fd in fds:
        os.close(fd)


async def _stream(box: socket.socket, samples: _Samples, number: int) -> None:
    started = time.perf_counter()
    fds = await _spawn(box, Spawn(id=number, argv=(b"/usr/bin/head", b"-c", str(STREAM).encode(), b"/dev/zero")))
    assert await asyncio.to_thread(_drain, fds[1]) == STREAM
    samples.add("200 MiB through a pipe, MB/s", STREAM / 1e6 / (time.perf_counter() - started))
    await _receive(box)
    for fd in fds:
        os.close(fd)


def _private_kib(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(float(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def _spawner_of(box: Box, before: set[int], zygote: int) -> int:
    (pid,) = _children(zygote) - before
    return pid


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


async def measure(image: Path, boxes: int, runtime: str, root: Path) -> str:
    """Return the printed table."""
    config = ContainerPoolConfig.model_validate({"runtime": runtime})
    engine = LocalEngine(config, data_dir=root, image=_Image(image), instance="bench")
    samples = _Samples()
    await engine.start()
    try:
        for number in range(boxes):
            cpu, started = _cpu(), time.perf_counter()
            box = await engine.create(f"bench-{number}")
            samples.add("create, ms", (time.perf_counter() - started) * 1e3)
            before, started = _children(engine.zygote.pid), time.perf_counter()
            sock = await engine.open(box)
            samples.add("open, ms", (time.perf_counter() - started) * 1e3)
            spent = _cpu() - cpu
            spawner = _spawner_of(box, before, engine.zygote.pid)
            for attempt in range(10):
                await _shell(sock, samples, 2 * attempt)
                await _exec(sock, samples, 2 * attempt + 1)
            samples.add("spawner's private memory, KiB", _private_kib(spawner))
            await _stream(sock, samples, 99)
            cpu, started = _cpu(), time.perf_counter()
            sock.close()
            await engine.destroy(box)
            samples.add("destroy, ms", (time.perf_counter() - started) * 1e3)
            samples.add("CPU to make and remove, ms", (spent + _cpu() - cpu) * 1e3)
    finally:
        await engine.close()
    return samples.table()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True, help="root file system of a target image")
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--runtime", choices=("auto", "runc", "crun"), default="auto")
    arguments = parser.parse_args()
    linux.set_subreaper()
    linux.private_mounts()
    with tempfile.TemporaryDirectory(prefix="hermes-bench-", dir="/var/tmp") as root:
        print(asyncio.run(measure(arguments.image, arguments.boxes, arguments.runtime, Path(root))))


if __name__ == "__main__":
    main()
