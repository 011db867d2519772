"""Root's power, given up before anything is read that the front wrote: a front that was taken over wrote what it liked."""

import contextlib
import ctypes
import os
from pathlib import Path

from rich.cells import cell_len

from hermes.config import Settings
from hermes.errors import MachineError
from hermes.store import JournalReader

_PR_SET_DUMPABLE = 4


def become_owner(settings: Settings) -> None:
    """Run by root, become for good who owns the evidence; where root owns it, or there is none, stay root.

    To be called with everything imported: the new user may not be able to read the source.
    """
    become_owner_of(settings.journal_dir, settings.recordings_dir)


def opened_journal(settings: Settings) -> JournalReader:
    """The journal, read as its owner (`become_owner`). Raises JournalError."""
    become_owner(settings)
    return JournalReader(settings.journal_path)


def become_owner_of(*directories: Path) -> None:
    """Run by root, become for good who owns the first of these directories that is there, as `become_owner` does."""
    if os.geteuid() != 0:
        return
    for directory in directories:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            owner = directory.lstat()
            break
    else:
        return
    if owner.st_uid == 0:
        return
    cell_len("\N{HIRAGANA LETTER A}")  # rich imports what it needs for this when it first meets it
    os.setgroups([])
    os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    # The front is of the same user now. It must not get at this process, which can type into the operator's terminal.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise MachineError(f"prctl: {os.strerror(ctypes.get_errno())}")
