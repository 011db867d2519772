import os
import signal
import subprocess
import sys

import pytest

from hermes.broker import accounts
from hermes.testing import nursery

FAMILY = "import subprocess, sys; subprocess.Popen(['sleep', '1000']); print('ready', flush=True); sys.stdin.read()"


def test_descendants_are_found_over_generations() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        below = nursery.descendants(parent.pid)
        assert len(below) == 1
        assert below | {parent.pid} <= nursery.descendants(os.getpid())
        for pid in below | {parent.pid}:
            os.kill(pid, signal.SIGKILL)


def test_a_child_ends_even_if_what_it_runs_raises() -> None:
    pid = os.waitpid(nursery.fork(lambda: None), 0)
    assert pid[1] == 0


def test_it_makes_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_create", accounts._create)  # put back afterwards
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    nursery._disarm()
    with pytest.raises(accounts.UnknownUser):
        accounts.find(b"nobody-i-know")


def test_without_root_no_other_user_is_taken_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_create", accounts._create)
    for call in ("setgroups", "setresgid", "setresuid", "fchown"):
        monkeypatch.setattr(os, call, getattr(os, call))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = os.getresuid()
    nursery._disarm()
    os.setresuid(1, 1, 1)
    os.setgroups([1])
    assert os.getresuid() == before
