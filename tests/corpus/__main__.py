"""`python -m tests.corpus --file sessions.jsonl [--limit N] [--engine docker]`: play a corpus, compare, and say how it went.

Needs what the tests need, and a built image: run `scripts/test` once before.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.corpus.play import scripts
from tests.corpus.run import SETTINGS, run
from tests.sensors import HERMES, Sensor, free_port, wait_until

IMAGES = Path("/var/tmp/hermes-test/images")


def main() -> int:
    """Exit status 0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("sessions.jsonl"))
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--keep", action="store_true", help="leave the sensor's data where it is, and say where")
    given = parser.parse_args()
    chosen = list(scripts(given.file))[: given.limit]
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="corpus-"))
    place.chmod(0o755)
    sensor = _started(place, given.engine)
    try:
        report = run(sensor, chosen, place / "clients", at_once=given.at_once, told=print)
    finally:
        sensor.stop()
        if given.keep:
            print(f"kept in {place}")
        else:
            shutil.rmtree(place)
    print("\n".join(report.lines()))
    return 0 if report.holds else 1


def _started(place: Path, engine: str) -> Sensor:
    data, log = place / "data", place / "log"
    for directory in (data, place / "clients"):
        directory.mkdir(mode=0o755)
    (data / "images").symlink_to(IMAGES)
    port = free_port()
    settings = {**SETTINGS, "data_dir": str(data), "server__port": str(port), "server__max_startups": "1000"}
    settings["container_pool__engine"] = engine
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HERMES_")}
    environ |= {f"HERMES_{key.upper()}": value for key, value in settings.items()}
    with log.open("wb") as output:
        process = subprocess.Popen([HERMES, "up"], env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    sensor = Sensor(data, environ, port, process, log)
    wait_until(lambda: "ready after" in sensor.said() or process.poll() is not None)
    if process.poll() is not None:
        raise SystemExit(sensor.said())
    return sensor


if __name__ == "__main__":
    sys.exit(main())
