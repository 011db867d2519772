"""The data directory: whose it is, what is refused, and one sensor in it at a time."""

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hermes.broker import data_dir
from hermes.config import Settings
from hermes.errors import MachineError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")


def settings_for(directory: Path, **recording: str) -> Settings:
    return Settings.model_validate({"data_dir": str(directory), "sensor": {"user": "nobody"}, "recording": recording})


def prepare(settings: Settings) -> None:
    data_dir.prepare(settings.data_dir)
    data_dir.prepare_fronts(settings)


def facts(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_uid, stat.S_IMODE(status.st_mode)


@needs_root
def test_the_front_owns_only_what_it_writes(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")
    prepare(settings)
    prepare(settings)
    assert facts(settings.data_dir) == (0, 0o711)
    for directory in (settings.journal_dir, settings.keys_dir, settings.recordings_dir):
        assert facts(directory) == (pwd.getpwnam("nobody").pw_uid, 0o700)


@needs_root
def test_artifacts_are_roots_and_the_sensors_group_reads_them(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")
    prepare(settings)
    (settings.artifacts_dir / ".incoming" / "left").write_text("half")
    prepare(settings)
    assert facts(settings.artifacts_dir) == (0, 0o750)
    assert settings.artifacts_dir.stat().st_gid == pwd.getpwnam("nobody").pw_gid
    assert facts(settings.artifacts_dir / ".incoming") == (0, 0o700)
    assert list((settings.artifacts_dir / ".incoming").iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"cannot prepare .*: Not a directory"):
        data_dir.prepare(tmp_path / "file" / "data")


@pytest.mark.parametrize("mode", [0o1777, 0o1755, 0o775, 0o757])
def test_a_directory_that_others_use_is_left_alone(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(MachineError, match="others may write in it"):
        data_dir.prepare(place)
    assert facts(place) == (os.geteuid(), mode)


@pytest.mark.parametrize("others", [["syslog"], ["journal", "syslog"]])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, others: list[str]) -> None:
    for name in others:
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)
    with pytest.raises(MachineError, match="it holds something else \\('syslog'\\)"):
        data_dir.prepare(tmp_path)
    assert facts(tmp_path) == (os.geteuid(), 0o755)


@needs_root
@pytest.mark.parametrize("names", [["images"], ["images", "lost+found"], ["lock", "notes"]])
def test_a_directory_of_our_own_is_taken(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)
    data_dir.prepare(tmp_path)
    assert facts(tmp_path) == (0, 0o711)


@needs_root
def test_recordings_that_go_to_a_directory_of_the_operators(tmp_path: Path) -> None:
    elsewhere = tmp_path / "evidence"
    elsewhere.mkdir(mode=0o750)
    prepare(settings_for(tmp_path / "data", output_dir=str(elsewhere)))
    assert facts(elsewhere) == (0, 0o750)


@needs_root
def test_recordings_that_go_to_a_new_directory(tmp_path: Path) -> None:
    prepare(settings_for(tmp_path / "data", output_dir=str(tmp_path / "deep" / "evidence")))
    assert facts(tmp_path / "deep")[0] == 0
    assert facts(tmp_path / "deep" / "evidence") == (pwd.getpwnam("nobody").pw_uid, 0o700)


@needs_root
@pytest.mark.parametrize("place", ["", "images", "stopped/x", "../data/boxes"])
def test_recordings_do_not_go_where_root_writes(tmp_path: Path, place: str) -> None:
    settings = settings_for(tmp_path / "data", output_dir=f"{tmp_path}/data/{place}")
    with pytest.raises(MachineError, match="which is root's"):
        prepare(settings)
    assert facts(tmp_path / "data") == (0, 0o711)


@needs_root
@pytest.mark.parametrize("name", ["journal", "keys", "recordings"])
def test_what_a_link_leads_to_is_not_given_away(tmp_path: Path, name: str) -> None:
    (tmp_path / "target").mkdir(mode=0o755)
    settings = settings_for(tmp_path / "data")
    prepare(settings)
    (settings.data_dir / name).rmdir()
    (settings.data_dir / name).symlink_to(tmp_path / "target")
    with pytest.raises(MachineError, match="it is a link to"):
        prepare(settings)
    assert facts(tmp_path / "target") == (0, 0o755)


# ---- the lock


def test_one_sensor_a_data_directory(tmp_path: Path) -> None:
    with data_dir.locked(tmp_path, pytest.fail):
        second = data_dir.locked(tmp_path, pytest.fail)
        with pytest.raises(MachineError, match=rf"another Hermes \(process {os.getpid()}\) runs on"):
            second.__enter__()
    with data_dir.locked(tmp_path, pytest.fail) as fd, pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"1\n")


def killed_holder(directory: Path, *, left: bool) -> "subprocess.Popen[bytes]":
    """A process that took the lock, started a child that holds it too, and was killed. Closing its stdin ends the child."""
    code = f"""
import os, pathlib, subprocess, sys
from hermes.broker import data_dir
with data_dir.locked(pathlib.Path(sys.argv[1]), print) as fd:
    if {left}:
        subprocess.Popen(["cat"], pass_fds=[fd])
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert holder.wait() == -9
    return holder


def test_what_a_killed_holder_left_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    with killed_holder(tmp_path, left=True) as holder:
        assert holder.stdin is not None

        def progress(line: str) -> None:
            said.append(line)
            holder.communicate()  # closes the child's standard input

        with data_dir.locked(tmp_path, progress):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert said == ["waiting for an earlier run to end"]


def test_what_a_killed_holder_left_may_never_end(tmp_path: Path) -> None:
    with killed_holder(tmp_path, left=True) as holder:
        waiting = data_dir.locked(tmp_path, lambda _: None, patience=0.0)
        with pytest.raises(MachineError, match=rf"process {holder.pid}, .* was killed, but what it started has not ended"):
            waiting.__enter__()
        holder.communicate()


def test_a_killed_holder_that_left_nothing(tmp_path: Path) -> None:
    with killed_holder(tmp_path, left=False), data_dir.locked(tmp_path, pytest.fail):
        pass


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "lock").symlink_to("target")
    with pytest.raises(MachineError, match="it is a link to target"):
        data_dir.locked(tmp_path, pytest.fail).__enter__()
    assert (tmp_path / "target").read_text() == "precious"
