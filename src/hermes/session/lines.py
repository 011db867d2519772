"""What was typed, line by line: keystrokes in, lines out, as far as editing keys let them be known."""

from dataclasses import dataclass

from hermes.events import from_bytes

MAX_LINE = 4096
"""Bytes of one line that are kept."""
MAX_ESCAPE = 64
"""Bytes after which an unfinished escape sequence is given up as one."""

_BACKSPACE, _DELETE, _TAB, _ESC = 0x08, 0x7F, 0x09, 0x1B
_CTRL_C, _CTRL_D, _CTRL_U, _CTRL_W = 0x03, 0x04, 0x15, 0x17


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end; `truncated` when it was longer than what is kept."""

    text: str
    truncated: bool = False


class LineAssembler:
    """Assemble lines from a terminal's keystrokes or, without one, from a pipe's bytes.

    History and completion happen in the attacker's shell and cannot be seen here; the recording shows them.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._line = bytearray()
        self._truncated = False
        self._escape: bytearray | None = None
        self._after_return = False

    def feed(self, data: bytes) -> list[Line]:
        """Take bytes; return the lines they complete. Empty lines are left out."""
        lines: list[Line] = []
        if not self._terminal:
            *ended, rest = data.split(b"\n")
            for part in ended:
                self._append(part)
                self._end(lines)
            self._append(rest)
            return lines
        for byte in data:
            self._key(byte, lines)
        return lines

    def finish(self) -> list[Line]:
        """Return the unfinished line, if there is one; nothing more will come."""
        lines: list[Line] = []
        self._end(lines)
        return lines

    def _key(self, byte: int, lines: list[Line]) -> None:
        if self._escape is not None:
            self._continue_escape(byte)
        elif byte == _ESC:
            self._escape = bytearray()
        elif byte == 0x0D or (byte == 0x0A and not self._after_return):
            self._end(lines)
        elif byte in (_BACKSPACE, _DELETE):
            self._erase_character()
        elif byte == _CTRL_U:
            self._line.clear()
        elif byte == _CTRL_W:
            self._erase_word()
        elif byte == _CTRL_C:
            self._line.clear()
            self._truncated = False
        elif byte == _CTRL_D:
            pass
        elif byte >= 0x20 or byte == _TAB:
            self._append(bytes((byte,)))
        self._after_return = byte == 0x0D

    def _continue_escape(self, byte: int) -> None:
        """Skip CSI (`ESC [ … final`), SS3 (`ESC O x`) and two-byte sequences (ECMA-48, 5.4)."""
        assert self._escape is not None
        self._escape.append(byte)
        introducer = self._escape[0]
        if introducer == 0x5B:
            ended = len(self._escape) > 1 and 0x40 <= byte <= 0x7E
        elif introducer == 0x4F:
            ended = len(self._escape) == 2
        else:
            ended = True
        if ended or len(self._escape) >= MAX_ESCAPE:
            self._escape = None

    def _erase_character(self) -> None:
        while self._line and self._line[-1] & 0xC0 == 0x80:
            self._line.pop()
        if self._line:
            self._line.pop()

    def _erase_word(self) -> None:
        stripped = self._line.rstrip(b" \t")
        self._line = stripped[: max(stripped.rfind(b" "), stripped.rfind(b"\t")) + 1]

    def _append(self, data: bytes) -> None:
        room = MAX_LINE - len(self._line)
        self._line += data[:room]
        self._truncated |= len(data) > room

    def _end(self, lines: list[Line]) -> None:
        line = bytes(self._line).rstrip(b"\r")
        if line.strip():
            lines.append(Line(from_bytes(line), self._truncated))
        self._line.clear()
        self._truncated = False
