"""A file that a command makes for the operator, with the operator's power, of what it reads without."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hermes.cli.console import USAGE, fail


@contextmanager
def new_file(place: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, to be made before root's power is given up. When what follows fails, nothing is left in it, or of it."""
    if str(place) == "-":
        fail("-o -: this does not go to a terminal or pipe; name a file", USAGE)
    try:
        fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        fail(f"cannot make {place}: {error.strerror}")
    with os.fdopen(fd, "w+b") as file:
        try:
            yield file, place
            file.flush()
        except BaseException:
            with suppress(OSError):
                file.seek(0)
                file.truncate()
                place.unlink()
            raise
