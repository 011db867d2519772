"""What the index costs and how fast it answers: `python -m bench.search [--events N] [--keep DIR]`.

A journal of made-up attackers is written, the same each time; then the analyst derives the index from it, and real queries
are asked of it, each many times. Prints events a second, sizes, and milliseconds a query: p50 and p95.
"""

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

from bench.attackers import APART, START, Attackers, write
from bench.stats import percentile
from hermes.analysis.counts import KINDS, Window, series, top, totals
from hermes.analysis.query import Query
from hermes.analysis.reader import IndexReader, moment
from hermes.analysis.search import search
from hermes.analysis.work import Analyst, stages
from hermes.config import Settings

RECORDED = 50
"""One command of so many events has a recording."""
TIMES = 15


def prepare(directory: Path, count: int) -> Settings:
    """Return settings with a journal of `count` events in this directory, which is made unless it is there."""
    settings = Settings(data_dir=directory)
    for path in (settings.journal_dir, settings.index_dir, settings.recordings_dir):
        path.mkdir(exist_ok=True)
    if not settings.journal_path.exists():
        write(settings.journal_path, Attackers(1, settings.recordings_dir, count // RECORDED), count)
    return settings


def build(settings: Settings, count: int) -> None:
    """Derive the index; say how fast that went, and how large it is."""
    for part in settings.index_dir.iterdir():
        part.unlink()
    analyst = Analyst(settings, stages(settings))
    analyst.open()
    begin, spent, longest = time.perf_counter(), time.process_time(), 0.0
    while True:
        start = time.perf_counter()
        if analyst.step():
            break
        longest = max(longest, time.perf_counter() - start)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - spent
    used = analyst.index.size.used
    analyst.close()
    journal = settings.journal_path.stat().st_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{count} events: {count / seconds:.0f} a second, {cpu / count * 1e6:.0f} µs of CPU each, a step ≤ {longest * 1e3:.0f} ms"
    )
    print(f"journal {journal / 2**20:.0f} MiB, index {used / 2**20:.0f} MiB, memory {memory} MiB")


def queries(index: IndexReader, count: int) -> dict[str, Query]:
    """Return what is asked: words that are common, rare and not there, and every filter."""
    (busy,), (rare,) = (
        index.query(f"SELECT source_ip FROM visits GROUP BY 1 ORDER BY count(*) {order}, 1 LIMIT 1")[0]
        for order in ("DESC", "ASC")
    )
    sha256, md5 = index.query("SELECT sha256, md5 FROM documents_files ORDER BY id LIMIT 1")[0]
    late, early = (moment(START + int(APART * count * part)) for part in (0.9, 0.01))
    return {
        "/bin/busybox": Query(text="/bin/busybox"),
        "root (very common)": Query(text="root"),
        "authorized_keys": Query(text="authorized_keys"),
        "wget http://": Query(text="wget http://"),
        "'rm -rf .ssh' (phrase)": Query(text='"rm -rf .ssh"'),
        "chpass* (prefix)": Query(text="chpass*"),
        "&& (no word in it)": Query(text="&&"),
        "a word that is not there": Query(text="nosuchwordatall"),
        "usybo (inside of a word)": Query(text="usybo", syntax="substring"),
        "wget NOT curl (FTS5)": Query(text="wget NOT curl", syntax="fts5"),
        "root --ip RARE": Query(text="root", network=ip_network(rare)),
        "--ip BUSY": Query(network=ip_network(busy)),
        "busybox --ip NETWORK": Query(text="busybox", network=ip_network("100.0.0.0/6")),
        "busybox --country CN": Query(text="busybox", country="CN"),
        "wget --user oracle": Query(text="wget", user="oracle"),
        "--hassh": Query(hassh=f"{2:032x}"),
        "--hash SHA-256": Query(hash=sha256),
        "--hash MD5": Query(hash=md5),
        "--host ADDRESS": Query(host=busy),
        "busybox --event process.*": Query(text="busybox", event="process.*"),
        "root --since (last tenth)": Query(text="root", since=late),
        "root --until (first hundredth)": Query(text="root", until=early),
        "nothing at all (newest)": Query(),
        "common word, filters that exclude it": Query(text="root", event="forward.requested", country="CN"),
    }


def measured(work: Callable[[], object]) -> list[float]:
    """Milliseconds that it takes, each of `TIMES` times."""
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def ask(settings: Settings, count: int) -> None:
    """Ask everything, and print a table."""
    with IndexReader(settings.index_path) as index:
        late = Window(since=moment(START + int(APART * count * 0.9)))
        work: dict[str, Callable[[], object]] = {
            f"search {name}": lambda query=query: search(index, query)  # type: ignore[misc]
            for name, query in queries(index, count).items()
        }
        work |= {f"stats {kind}": lambda kind=kind: top(index, kind, Window(), 10) for kind in KINDS}  # type: ignore[misc]
        work["stats (totals)"] = lambda: totals(index, Window())
        work["stats --by hour"] = lambda: series(index, Window(), "hour")
        work["stats (all kinds, last tenth)"] = lambda: [top(index, kind, late, 10) for kind in KINDS]
        everything = []
        print(f"{'':50} {'p50 ms':>8} {'p95 ms':>8}")
        for name, one in work.items():
            times = measured(one)
            everything += times
            print(f"{name:50} {percentile(times, 50):8.1f} {percentile(times, 95):8.1f}")
        print(f"{'all of them':50} {percentile(everything, 50):8.1f} {percentile(everything, 95):8.1f}")


def main() -> None:
    """Make, derive, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the journal")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a directory for the journal, used again when it has one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hermes-bench-")))
        directory.mkdir(exist_ok=True)
        settings = prepare(directory, options.events)
        build(settings, options.events)
        ask(settings, options.events)


if __name__ == "__main__":
    main()
