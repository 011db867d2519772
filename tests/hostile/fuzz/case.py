"""A case: how far an honest client goes, and what is then sent, step by step. It is text: to read, to keep, to cut down."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Depth = Literal["connected", "identified", "keyed", "authenticated"]
"""What is done honestly first: nothing; the identification; the key exchange; the login."""


@dataclass(frozen=True)
class Step:
    """One action.

    `wire`: bytes as they are. `packet`: a payload, framed and encrypted as it must be. `frame`: a payload whose frame is wrong:
    `length` is added to its length field, `padding` stands for the padding's, `mac` is XORed into its last byte.
    `rekey`: an honest key exchange begins. `pause`: whatever the server says meanwhile is read. `deaf`: nothing is read any more.
    `eof`: no more will be sent.
    """

    kind: Literal["wire", "packet", "frame", "rekey", "pause", "deaf", "eof"]
    data: bytes = b""
    length: int = 0
    padding: int | None = None
    mac: int = 0

    def text(self) -> str:
        """The step as a line."""
        if self.kind == "frame":
            about = {"length": self.length, "padding": self.padding, "mac": self.mac}
            return f"frame {self.data.hex()} {json.dumps(about)}"
        return f"{self.kind} {self.data.hex()}".rstrip()

    @classmethod
    def parse(cls, line: str) -> "Step":
        """Read what `text` wrote."""
        kind, _, rest = line.partition(" ")
        data, _, about = rest.partition(" ")
        more: dict[str, Any] = json.loads(about) if about else {}
        return cls(kind, bytes.fromhex(data), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """What one client does. `compressed`: the connection is, once logged in."""

    depth: Depth
    steps: tuple[Step, ...]
    compressed: bool = False
    note: str = field(default="", compare=False)
    """Where it comes from."""

    def text(self) -> str:
        """The case as text."""
        head = f"# {self.note}\n" if self.note else ""
        return head + "\n".join(
            [f"{self.depth} {'compressed' if self.compressed else 'plain'}", *(it.text() for it in self.steps), ""]
        )

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read what `text` wrote."""
        notes = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        head, *lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        depth, _, compression = head.partition(" ")
        steps = tuple(map(Step.parse, lines))
        return cls(depth, steps, compression == "compressed", notes[0] if notes else "")  # type: ignore[arg-type]


def load(directory: Path) -> dict[str, Case]:
    """Kept cases by the name of their file."""
    return {path.stem: Case.parse(path.read_text()) for path in sorted(directory.glob("*.case"))}
