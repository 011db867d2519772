"""A sensor for the corpus: all of it is played, and then compared."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hermes.analysis.reader import IndexReader
from hermes.errors import AnalysisError
from hermes.store.follow import Follower
from tests.corpus.check import Report, compare
from tests.corpus.kernel import ProcessAccount, find_process
from tests.corpus.play import Script, play
from tests.sensors import Sensor

SETTINGS = {
    "authentication__passwords": '{"*": ["*"]}',
    "server__per_address__connections_per_minute": "0",
    "container_pool__size": "6",
}
"""Settings of a sensor that lets everybody in."""
SETTLE_SECONDS = 120.0


def run(sensor: Sensor, scripts: Iterable[Script], place: Path, *, at_once: int = 3, told: Callable[[str], object]) -> Report:
    """Play the scripts into a running sensor, wait until it has taken everything in, and compare."""
    with ProcessAccount(find_process("hermes-zygote", sensor.process.pid)) as account:
        with ThreadPoolExecutor(at_once) as pool:
            played = list(pool.map(lambda script: play(script, sensor.port, place), scripts))
        told(f"played {len(played)} sessions")
        _settle(sensor)
    if account.lost:
        raise RuntimeError("the kernel told more than was read: the account is of no use")
    data = sensor.data_dir
    return compare(played, data / "journal" / "journal.db", data / "index" / "index.db", data / "recordings", account)


def _settle(sensor: Sensor) -> None:
    """Wait until all boxes' facts are in the journal, and the index has come to its end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    follower = Follower(sensor.data_dir / "journal" / "journal.db")
    while not _is_settled(sensor, follower):
        if time.monotonic() > deadline:
            raise TimeoutError("the sensor does not come to rest")
        time.sleep(0.2)
    follower.close()


def _is_settled(sensor: Sensor, follower: Follower) -> bool:
    sessions = sensor.json("sessions", "list", "--limit", "100000")
    if any(session["ended"] is None for session in sessions):
        return False
    if len(list((sensor.data_dir / "watched").iterdir())) > int(sensor.environ["HERMES_CONTAINER_POOL__SIZE"]):
        return False
    try:
        with IndexReader(sensor.data_dir / "index" / "index.db") as index:
            return index.position == follower.last()
    except AnalysisError:
        return False
