"""What it costs a box to be watched: `python -m bench.watch --image ROOTFS`, as root.

Two boxes of the `local` engine, one watched and one not, execute a small program over and over, in turns: from dash, which
vforks, and from bash and perl, which fork. Prints the median time a fork, exec and wait, the CPU that the watcher used in a
burst, and whether each program of the watched box was seen.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.spawner import _Image
from hermes.broker import linux
from hermes.broker.engines.local import LocalEngine
from hermes.broker.spools import Spools
from hermes.config.models import ContainerPoolConfig
from hermes.container import spool
from hermes.events import ProcessExited, ProcessStarted
from hermes.testing.boxes import BoxClient

PROGRAM = "/bin/true"
WAYS = {
    "dash": ("/bin/sh", "-c", "i=0; while [ $i -lt {n} ]; do /bin/true {mark}; i=$((i+1)); done"),
    "bash": ("/bin/bash", "-c", "for ((i=0; i<{n}; i++)); do /bin/true {mark}; done"),
    "perl": ("/usr/bin/perl", "-e", "for (1..{n}) {{ system('/bin/true', '{mark}') }}"),
}


async def _time(client: BoxClient, way: str, count: int) -> float:
    """Microseconds a program."""
    program, option, script = WAYS[way]
    began = time.perf_counter()
    result = await client.run(None, program.encode(), option.encode(), script.format(n=count, mark="mark").encode())
    assert result.status == 0, result
    return (time.perf_counter() - began) / count * 1e6


def _watcher_cpu(container_id: str) -> float:
    """Seconds of CPU that the box's watcher has used."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"hermes-watcher " + container_id.encode()):
                fields = (path.parent / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return 0.0


def _seen(fd: int) -> tuple[int, int]:
    """Programs that were seen to begin and to end."""
    began = ended = position = 0
    pids: set[int] = set()
    while True:
        before = position
        for record, position in spool.read(fd, before):  # noqa: B007
            if isinstance(record, spool.Fact):
                event = spool.event_of(record)
                if isinstance(event, ProcessStarted) and event.argv[1:] == ["mark"]:
                    began += 1
                    pids.add(event.pid)
                elif isinstance(event, ProcessExited) and event.pid in pids and event.status == 0:
                    pids.discard(event.pid)
                    ended += 1
        if position == before:
            return began, ended


async def _run(image: Path, rounds: int, count: int, burst: int) -> None:
    linux.private_mounts()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        place = Path(directory)
        spools = Spools(place / "watched")
        config = ContainerPoolConfig.model_validate({"limits": {"cpus": 2}, "watch": {"spool_bytes": 1 << 30}})
        engines = {}
        for name, where in (("watched", spools), ("unwatched", None)):
            engines[name] = LocalEngine(
                config, data_dir=place / name, image=_Image(image), instance=f"bench-{name}-{os.getpid()}", spools=where
            )
            await engines[name].start()
        boxes = {name: await engine.create(name) for name, engine in engines.items()}
        clients = {name: BoxClient(await engines[name].open(box)) for name, box in boxes.items()}
        one = spools.of("watched")
        assert one is not None
        done = 0
        print(f"{'':8}{'unwatched µs':>14}{'watched µs':>14}{'added':>9}")
        for way in WAYS:
            times: dict[str, list[float]] = {"unwatched": [], "watched": []}
            for _ in range(rounds):
                for name, found in times.items():
                    found.append(await _time(clients[name], way, count))
                done += count
            without, with_ = (statistics.median(times[name]) for name in ("unwatched", "watched"))
            print(f"{way:8}{without:14.0f}{with_:14.0f}{with_ / without - 1:9.0%}")
        cpu = _watcher_cpu("watched")
        await _time(clients["watched"], "dash", burst)
        print(f"watcher's CPU: {(_watcher_cpu('watched') - cpu) / burst * 1e6:.0f} µs a program")
        fd = os.dup(one.fd)
        for name, client in clients.items():
            client.close()
            await engines[name].destroy(boxes[name])
        began, ended = _seen(fd)
        print(f"seen: {began} begun, {ended} ended, of {done + burst}")
        for engine in engines.values():
            await engine.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="an image's root file system")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="programs a round")
    parser.add_argument("--burst", type=int, default=10_000, help="programs of the last burst")
    arguments = parser.parse_args()
    os.umask(0o077)
    asyncio.run(_run(arguments.image, arguments.rounds, arguments.count, arguments.burst))


if __name__ == "__main__":
    main()
