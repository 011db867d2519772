"""What caused what in a session: the channel and the command behind each process, file and byte. Pure."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

REMEMBERED = 65_536
"""Processes remembered; the oldest are forgotten first. (Boxes have fewer at once, but an exit may never be told.)"""
MAX_DEPTH = 200
CONTENTS = 1024
"""Contents of files remembered with what caused the file."""
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "rbash", "busybox"))


class Cause(NamedTuple):
    """The channel something came from, the command that caused it, and how deep in the tree of processes it is."""

    channel: int | None = None
    command: str | None = None
    depth: int = 0


class _Process(NamedTuple):
    cause: Cause
    interactive: bool
    """A shell that takes lines from its channel: what it starts is caused by the line entered last."""


class Causes:
    """Takes the events of a session in their order, and tells of each what caused it."""

    def __init__(self) -> None:
        self._commands: dict[int, str | None] = {}
        """Of each channel: its command or, once there is one, the line entered last."""
        self._shells: set[int] = set()
        self._rooted: set[int | None] = set()
        """Channels whose own process was seen."""
        self._processes: OrderedDict[int, _Process] = OrderedDict()
        self._contents: OrderedDict[str, Cause] = OrderedDict()

    def of_channel(self, channel: int) -> Cause:
        """Return what causes what goes over a channel now."""
        return Cause(channel, self._commands.get(channel))

    def of_event(self, event: str, body: Mapping[str, Any]) -> Cause:
        """Take the next event (its name and fields) and return what caused it."""
        channel = body.get("channel")
        channel = channel if isinstance(channel, int) else None
        pid = body.get("pid")
        match event:
            case "channel.started" if channel is not None:
                self._commands[channel] = body.get("command")
                if body.get("kind") == "shell":
                    self._shells.add(channel)
                return Cause(channel)
            case "channel.input" if channel is not None:
                self._commands[channel] = str(body.get("line", ""))
                return Cause(channel)
            case "process.started" if isinstance(pid, int):
                return self._start(pid, channel, body)
            case "process.exited" if isinstance(pid, int):
                ended = self._processes.pop(pid, None)
                return ended.cause if ended is not None else self._known(channel)
        cause = self._known(channel)
        if isinstance(pid, int) and (process := self._processes.get(pid)) is not None:
            cause = process.cause._replace(depth=process.cause.depth + 1)
        if isinstance(content := body.get("sha256"), str):
            if event == "artifact.stored" and content in self._contents:
                return self._contents[content]
            self._contents[content] = cause
            if len(self._contents) > CONTENTS:
                self._contents.popitem(last=False)
        return cause

    def _known(self, channel: int | None) -> Cause:
        return Cause() if channel is None else self.of_channel(channel)

    def _start(self, pid: int, channel: int | None, body: Mapping[str, Any]) -> Cause:
        parent, earlier = self._processes.get(body.get("parent", 0)), self._processes.get(pid)
        if earlier is not None:  # the same process, with another program
            cause = earlier.cause
        elif parent is None and channel not in self._rooted:
            cause = Cause(channel) if channel in self._shells else self._known(channel)
            self._rooted.add(channel)
        elif parent is None:  # of a shell's that forked and executed nothing: a subshell, a pipe
            cause = self._known(channel)._replace(depth=1)
        else:
            cause = parent.cause._replace(depth=min(parent.cause.depth + 1, MAX_DEPTH))
            if parent.interactive and channel is not None:
                cause = cause._replace(command=self._commands.get(channel))
        if body.get("error") is None:
            interactive = channel in self._shells and _is_interactive(body.get("argv") or [])
            self._processes[pid] = _Process(cause, interactive)
            self._processes.move_to_end(pid)
            if len(self._processes) > REMEMBERED:
                self._processes.popitem(last=False)
        return cause


def _is_interactive(argv: list[str]) -> bool:
    """Whether it is a shell without a script."""
    name = PurePosixPath(argv[0].lstrip("-")).name if argv else ""
    return name in _SHELLS and all(one.startswith("-") and "c" not in one.lstrip("-") for one in argv[1:])
