"""What an engine is: it makes boxes, opens them, freezes, stops and lists them. One conformance suite holds for all."""

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hermes.broker.trees import Copied


@dataclass(slots=True)
class Box:
    """A container as its engine knows it.

    `id` is unique for all time; `pid` is its init's in the broker's pid namespace (0: unknown, a remote engine).
    """

    id: str
    pid: int = 0
    on_exit: list[Callable[[], None]] = field(default_factory=list)
    """Called once, from the event loop, when the box's init ends for whatever reason."""
    reached: dict[str, int] = field(default_factory=dict)
    """How often it reached which limit, by name in `container_pool.limits`, when it was last looked at."""
    lost: str | None = None
    """Why the broker ended it although a session had it, if it did."""


class Engine(Protocol):
    """Makes containers. All methods raise `EngineError` (and nothing else) when they cannot do what they say."""

    name: str
    runtime: str
    """The OCI runtime that makes its boxes, as far as it is known."""

    async def start(self, *, spare: Collection[str] = ()) -> None:
        """Make ready: check the runtime and the image, end every box that an earlier run left, and remove it all.

        Of boxes in `spare`, what they changed stays, for `recover`; `list_owned` names only those after.
        """

    async def recover(self, container_id: str, *, keep: Path | None) -> Copied | None:
        """Keep the changes of a box that was spared, as `destroy` does, and remove all of it. Safe to call twice.

        It is removed even if its changes cannot be kept; `EngineError` says so.
        """

    async def create(self, container_id: str) -> Box:
        """Return a running box. On failure or cancellation nothing of it is left."""

    async def open(self, box: Box) -> socket.socket:
        """Return a non-blocking box socket (see `hermes.container.messages`) that starts processes in the box.

        Called once a box, before it is handed out. Processes started over it end with the box, not with the socket.
        """

    def look(self, box: Box) -> None:
        """Bring `box.reached` up to date, without waiting; `destroy` does too. It may end a box that does harm. Never fails."""

    async def freeze(self, box: Box) -> None:
        """Stop every process of the box where it is. Return when they are stopped."""

    async def thaw(self, box: Box) -> None:
        """Let them go on."""

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        """End every process of the box and remove all of it. Safe to call twice.

        With `keep`, the files the attacker changed are first copied there, within `container_pool.forensics`: a directory that
        is created, owned by root with mode 0700, holding `changes/` and, where the engine sees all there was, `manifest.jsonl`
        (see `hermes.broker.trees`). Returns what came of that; None if nothing was kept.
        """

    async def list_owned(self) -> list[str]:
        """Ids of all boxes, running or not, that this Hermes instance (same `data_dir`) made and that still exist."""

    async def close(self) -> None:
        """Destroy every box and let go of all resources."""
