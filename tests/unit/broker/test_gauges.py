import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from hermes.broker.gauges import Gauge


@pytest.mark.parametrize(
    ("files", "reached"),
    [
        ({}, {}),
        ({"memory.events": "low 0\nmax 7\noom 2\noom_kill 3\n", "pids.events": "max 4\n"}, {"memory": 3, "pids": 4}),
        ({"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "pids.events": "max 0\n"}, {"memory": 2}),
        ({"memory.oom_control": "under_oom 0\n", "pids.events": ""}, {}),
    ],
)
def test_counters_of_either_version(tmp_path: Path, files: dict[str, str], reached: dict[str, int]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found: dict[str, int] = {}
    Gauge([tmp_path / "gone", tmp_path]).read(found)
    assert found == reached


def test_what_was_seen_is_not_forgotten_with_the_cgroup(tmp_path: Path) -> None:
    (tmp_path / "pids.events").write_text("max 4\n")
    found: dict[str, int] = {}
    gauge = Gauge([tmp_path], tmp_path / "unmounted")
    gauge.read(found)
    (tmp_path / "pids.events").unlink()
    gauge.read(found)
    assert found == {"pids": 4}


def test_a_full_disk_counts_each_time_it_becomes_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(f_bavail=1000, f_frsize=4096, f_files=5000, f_favail=100)
    monkeypatch.setattr(os, "statvfs", lambda _: cast(os.statvfs_result, seen))
    found: dict[str, int] = {}
    gauge = Gauge([], tmp_path, 1 << 20)
    steps = []
    for seen.f_bavail, seen.f_favail in [(1000, 100), (3, 100), (0, 100), (1000, 2), (0, 0)]:
        gauge.read(found)
        steps.append(dict(found))
    assert steps == [{}, {"disk": 1}, {"disk": 1}, {"disk": 1, "inodes": 1}, {"disk": 2, "inodes": 1}]


def test_a_large_disk_is_full_before_the_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(f_bavail=200, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: cast(os.statvfs_result, seen))
    found: dict[str, int] = {}
    Gauge([], tmp_path, 1 << 30).read(found)
    assert found == {"disk": 1}, "a file system without a number of inodes has not run out of them"
