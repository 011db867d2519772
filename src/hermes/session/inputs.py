"""What a client sent to a command's standard input, by its hashes: a script piped into `sh`, a file that `cat >x` took."""

import hashlib
from collections.abc import Iterator

from hermes import events

TOO_LARGE = "larger than artifacts.file_bytes"
NOT_RECORDED = "not recorded"


class Input:
    """One channel's input. It is hashed as it comes, up to `most` bytes, and kept by the channel's recording only."""

    def __init__(self, most: int) -> None:
        self.size = 0
        """Bytes fed."""
        self.is_recorded = False
        self._most = most
        self._hashes = (hashlib.sha256(), hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False))

    def feed(self, data: bytes) -> None:
        """Take bytes that were recorded."""
        self.size += len(data)
        if self.size <= self._most:
            for one in self._hashes:
                one.update(data)

    def facts(self, channel: int, container_id: str) -> Iterator[tuple[type[events.Event], dict[str, object]]]:
        """What is to be stated at its end, as kinds of events and their fields; nothing where nothing came."""
        if not self.size:
            return
        skipped = TOO_LARGE if self.size > self._most else None if self.is_recorded else NOT_RECORDED
        sha256, sha1, md5 = (one.hexdigest() for one in self._hashes)
        common: dict[str, object] = {"container_id": container_id, "channel": channel, "path": "", "size": self.size}
        yield events.FileWritten, {**common, "sha256": None if skipped else sha256, "skipped": skipped}
        if skipped is None:
            yield events.ArtifactStored, {**common, "sha256": sha256, "sha1": sha1, "md5": md5, "source": "input", "known": False}


def is_input(kind: str, label: str | None, terminal: bool) -> bool:
    """Whether what a channel of that kind is sent is content, not keystrokes (or a protocol of its own, as SFTP)."""
    return (kind == "exec") or (kind == "shell" and not terminal) or (kind == "subsystem" and label != "sftp")
