"""Where programs of the machine are found."""

import os
import shutil

SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
"""Searched after PATH: under Debian's `su`, root's PATH is that of an ordinary user, without runc."""


def which(program: str) -> str | None:
    """The program's path; None when it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
