import os
import subprocess
import sys

import pytest
from bench import procs

STAT = "4242 (a) b (c) S 17 4242 4242 0 -1 4194304 100 200 0 0 {} {} {} {} 20 0 1 0 99 0 0"
ROLLUP = """00400000-7ffd6dbed000 ---p 00000000 00:00 0                              [rollup]
Rss:                1740 kB
Shared_Clean:       1572 kB
Private_Clean:        52 kB
Private_Dirty:       116 kB
Private_Hugetlb:       4 kB
Swap:                  0 kB
"""


def test_stat_is_read_behind_any_name() -> None:
    ticks = procs.TICKS
    stat = procs.parse_stat(STAT.format(2 * ticks, ticks, 4 * ticks, 8 * ticks))
    assert stat == procs.Stat("a) b (c", 17, 3.0, 12.0)


def test_rollup_in_bytes() -> None:
    sizes = procs.parse_rollup(ROLLUP)
    assert sizes["Rss"] == 1740 * 1024
    assert procs.private_of(sizes) == (52 + 116 + 4) * 1024
    assert procs.written_of(sizes) == 116 * 1024


def test_descent_takes_whole_trees_and_only_those() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20}
    assert procs.descend(parents, [10]) == {10, 11, 12}
    assert procs.descend(parents, [11, 20]) == {11, 12, 20, 21}
    assert procs.descend(parents, [99]) == set()


def test_cpu_counts_children_that_ended() -> None:
    before = procs.cpu([os.getpid()])
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert procs.cpu([os.getpid()]) - before >= 0.25


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert procs.memory([child.pid]) > 0
        assert procs.resident([child.pid]) > 0  # how much depends on when: it is just being executed
        assert child.pid in procs.tree([os.getpid()])
        assert procs.user_of(child.pid) == os.geteuid()
        child.kill()
    assert procs.memory([child.pid]) == 0
    assert procs.resident([child.pid]) == 0
    assert procs.user_of(child.pid) is None
    assert procs.tree([child.pid]) == set()


@pytest.mark.root
def test_a_box_is_the_processes_inside_and_the_one_that_spawns_them() -> None:
    script = "echo ready; sleep 60 & wait"
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as outside:
        assert outside.stdout is not None
        try:
            assert outside.stdout.readline() == b"ready\n"
            (box,) = procs.boxes([outside.pid])
            assert outside.pid in box
            assert len(box) >= 2
            assert os.getpid() not in box
        finally:
            os.killpg(outside.pid, 9)
    assert procs.boxes([os.getpid()]) == []
