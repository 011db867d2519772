"""Where the content of a file is kept: once, by its SHA-256. Written by root (`hermes.broker.artifacts`), read by all others."""

import re
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")

INCOMING = ".incoming"
"""The directory, among those of the artifacts, of what is being written."""


def is_sha256(name: str) -> bool:
    """Whether `name` is a SHA-256 as artifacts are named by: 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(name) is not None


def name(sha256: str) -> str:
    """Where an artifact lies, relative to the directory of them all: `ab/cd/abcd…`. ValueError if that is no SHA-256."""
    if not is_sha256(sha256):
        raise ValueError(f"not a SHA-256: {sha256[:80]!r}")
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


def path(directory: Path, sha256: str) -> Path:
    """The file of an artifact below `directory`. ValueError if that is no SHA-256."""
    return directory / name(sha256)
