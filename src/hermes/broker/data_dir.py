"""The data directory: made, refused where it is somebody else's, shared out between root and the front, and locked."""

import contextlib
import fcntl
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hermes.broker import artifacts
from hermes.config import Settings
from hermes.errors import MachineError

ROOTS = frozenset({"images", "boxes", "templates", "trash", "stopped", "verify", "watched", "artifacts"})
"""Directories in it that only root writes."""
LOCK = "lock"
END_PATIENCE = 45.0
"""Seconds that what a killed launcher left behind may take to end."""

_KNOWN = ROOTS | {"journal", "keys", "recordings", "index", "outputs", "geo", "lost+found"}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def prepare(data_dir: Path) -> None:
    """Make the data directory root's, with permissions to match. MachineError for one that holds something else."""
    with _translated(data_dir):
        made = _make(data_dir)
        fd = os.open(data_dir, _DIRECTORY)
        try:
            if not made:
                _require_ours(data_dir, fd)
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o711)
        finally:
            os.close(fd)


def prepare_fronts(settings: Settings) -> None:
    """Make the directories that front, analyst and outputs write, and give them to their user; and that of artifacts, which they
    may read.

    A `recording.output_dir` elsewhere that exists already stays as it is: whose it is, is for the operator to say.
    """
    own = settings.journal_dir, settings.keys_dir, settings.index_dir, settings.outputs_dir, settings.recordings_dir
    _prepare_fronts(settings, (*own, settings.geo_dir))


def prepare_geo(settings: Settings) -> None:
    """Make the data directory, and in it the directory of geographic databases, which is the front's."""
    prepare(settings.data_dir)
    _prepare_fronts(settings, (settings.geo_dir,))


def _prepare_fronts(settings: Settings, directories: Iterable[Path]) -> None:
    try:
        account = pwd.getpwnam(settings.sensor.user)
    except KeyError:
        raise MachineError(f"sensor.user {settings.sensor.user!r} does not exist: run scripts/setup") from None
    root = settings.data_dir.resolve()
    for directory in directories:
        place = directory.parent.resolve() / directory.name
        inside = place.is_relative_to(root)
        if inside and (place == root or place.relative_to(root).parts[0] in (*ROOTS, LOCK)):
            raise MachineError(f"recordings cannot go to {place}, which is root's: set recording.output_dir to another")
        with _translated(directory):
            if not _make(place, mode=0o700) and not inside:
                continue
            fd = os.open(place, _DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(fd, account.pw_uid, account.pw_gid)
                os.fchmod(fd, 0o700)
            finally:
                os.close(fd)
    with _translated(settings.artifacts_dir):
        artifacts.prepare(str(settings.artifacts_dir), account.pw_gid)


@contextlib.contextmanager
def locked(data_dir: Path, progress: Callable[[str], None], *, patience: float = END_PATIENCE) -> Iterator[int]:
    """Hold the data directory's lock, or raise MachineError that says who holds it. Yields the descriptor that holds it.

    The lock is held until every process that inherited the descriptor has ended: where the launcher that took it was killed,
    what it started still cleans up, and this waits for that. The descriptor cannot write: the front has it too.
    """
    path = data_dir / LOCK
    with _translated(path):
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd, data_dir, progress, patience)
        with _translated(path):
            _write(path, f"{os.getpid()}\n".encode())
        yield fd
    finally:
        os.close(fd)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _lock(fd: int, data_dir: Path, progress: Callable[[str], None], patience: float) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        if _has_open(holder, fd):
            raise MachineError(f"another Hermes (process {holder}) runs on {data_dir}: stop it, or set another data_dir")
        if time.monotonic() > deadline:
            raise MachineError(
                f"process {holder}, a Hermes on {data_dir}, was killed, but what it started has not ended: "
                f"`fuser -v {data_dir / LOCK}` shows it"
            )
        if not told:
            progress("waiting for an earlier run to end")
            told = True
        time.sleep(0.1)


def _has_open(pid: str, fd: int) -> bool:
    """Whether the process is there and has the file of `fd` open."""
    if not pid.isdecimal():
        return False
    ours = os.fstat(fd)
    try:
        for entry in Path("/proc", pid, "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(entry.stat(), ours):
                    return True
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # a process that has ended lets nobody look
        return False
    return False


def _make(directory: Path, mode: int = 0o711) -> bool:
    """Make a directory, and those above it; False when there is one."""
    try:
        directory.mkdir(mode=mode, parents=True)
    except FileExistsError:
        return False
    return True


def _require_ours(data_dir: Path, fd: int) -> None:
    """Raise MachineError for a directory that others than Hermes use."""
    mode = os.fstat(fd).st_mode
    fix = "set data_dir to a directory of Hermes' own"
    if mode & (stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH):
        raise MachineError(
            f"{data_dir} cannot be the data directory: others may write in it (mode {stat.S_IMODE(mode):o}): {fix}"
        )
    names = set(os.listdir(fd))
    if LOCK not in names and (strange := sorted(names - _KNOWN)):
        raise MachineError(f"{data_dir} cannot be the data directory: it holds something else ({strange[0]!a}): {fix}")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"it is a link to {path.readlink()}" if path.is_symlink() else error.strerror
        raise MachineError(f"cannot prepare {error.filename or path}: {reason}") from error
