"""Plays recorded sessions of attackers into a sensor with the real OpenSSH client: one connection each, a channel a command."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus.kernel import MARK, now
from tests.sensors import CLIENT

COMMAND_SECONDS = 10.0
"""After so long a command's client is ended: some never end by themselves."""
LOGIN_SECONDS = 60.0
BOX_SECONDS = 30.0
"""Longer than a box goes on after its client has left."""

_FILES = (
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin; find / \\( -path /proc -o -path /sys \\) -prune -o -type f -newermt @{since} -print0"
    " 2>/dev/null | xargs -0 -r sha256sum 2>/dev/null"
)
"""The box's own account of files written since a time."""


@dataclass(frozen=True)
class Script:
    """A recorded session: who logged in, and what came then."""

    id: str
    username: str
    password: str
    inputs: tuple[str, ...]
    shell: bool
    """The inputs are lines typed into one shell, not commands of a channel each."""

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Script":
        """From a line of the corpus."""
        accepted = [attempt for attempt in line["auth"] if attempt["ok"]] or line["auth"] or [{"u": "root", "p": "root"}]
        username, password = accepted[-1]["u"] or "root", accepted[-1]["p"] or "root"
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", username):  # no name that a Linux has
            username = "root"
        shell = line["mode"] in ("pty", "shell", "both")
        return cls(line["id"], username, password, tuple(line["inputs"]), shell)


@dataclass
class Played:
    """A session as it was played."""

    script: Script
    began: float
    """On the monotonic clock, before the client connected."""
    over: float = 0.0
    """After the client had left."""
    sent: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path: files that the box itself says were written."""
    failed: str = ""
    """Why it could not be played."""

    @property
    def marker(self) -> str:
        """An argument that only this session has."""
        return f"{MARK.decode()}{self.script.id}"


def scripts(path: Path) -> Iterator[Script]:
    """The sessions of a corpus in which something was typed or asked for."""
    with path.open() as lines:
        for line in lines:
            session = json.loads(line)
            if session["inputs"]:
                yield Script.of(session)


def play(script: Script, port: int, place: Path) -> Played:
    """Play one session. `place` is a directory for the client's socket, with a short path."""
    played = Played(script, now())
    control = place / f"{abs(hash(script.id)) % 10**9}"
    to = (*CLIENT, "-S", str(control), "-p", str(port), f"{script.username}@127.0.0.1")
    master = subprocess.Popen(
        ["sshpass", "-p", script.password, "ssh", "-M", "-N", *to], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        if not _wait(lambda: control.exists() or master.poll() is not None) or master.poll() is not None:
            played.failed = "no login"
            return played
        since = f"{time.time():.6f}"
        _run(to, f"sh -c 'sleep 0.2' {played.marker}")
        if script.shell:
            played.sent = [line for text in script.inputs for line in text.splitlines() if line.strip()]
            _run(to, None, "".join(f"{line}\n" for line in (*played.sent, "exit")).encode())
        else:
            for command in script.inputs:
                played.sent.append(command)
                _run(to, command)
        listed = _run(to, _FILES.format(since=since))
        for line in listed.decode(errors="surrogateescape").splitlines():
            digest, _, path = line.removeprefix("\\").partition("  ")
            if len(digest) == 64:
                played.files[path] = digest
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["ssh", *to[:-1], "-O", "exit", to[-1]], capture_output=True, timeout=LOGIN_SECONDS, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            master.wait(COMMAND_SECONDS)
        master.kill()
        master.wait()
        played.over = now() + BOX_SECONDS
    return played


def _run(to: tuple[str, ...], command: str | None, stdin: bytes = b"") -> bytes:
    """Run a command, or a shell with these lines, in a channel of its own; return its output."""
    ask = ["ssh", *(() if command is not None else ("-tt",)), *to, *(() if command is None else (command,))]
    try:
        return subprocess.run(ask, input=stdin, capture_output=True, timeout=COMMAND_SECONDS, check=False).stdout
    except subprocess.TimeoutExpired as late:
        return late.stdout or b""


def _wait(condition: Any) -> bool:
    deadline = time.monotonic() + LOGIN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
