"""What was typed, line by line: keystrokes in, lines out, as far as editing keys let them be known."""

import re

import msgspec

from hermes.events import from_bytes

MAX_LINE = 4096
"""Bytes of one line that are kept."""
MAX_ESCAPE = 64
"""Bytes after which an unfinished escape sequence is given up as one."""

_KEYS = re.compile(
    rb"([\t\x20-\x7e\x80-\xff]+)(\r\n?|\n)?"
    rb"|(\r\n?|\n)"
    rb"|([\x08\x7f]+)"
    rb"|([\x03\x15\x17])"
    rb"|(\x1b(?:\[(?:[^@-~]{0,62}[@-~]|[^@-~]{63})|O.|[^\[O]))"
    rb"|(\x1b.*)",
    re.DOTALL,
)
"""Runs of what is typed; other control characters do nothing. Escape sequences are CSI (`ESC [ … final`, given up after
`MAX_ESCAPE` bytes), SS3 (`ESC O x`) and those of two bytes (ECMA-48, 5.4)."""
_TEXT, _LINE, _RETURN, _ERASE, _CONTROL, _ESCAPE, _UNFINISHED = range(1, 8)


class Line(msgspec.Struct, frozen=True):
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
        self._unfinished = b""
        self._after_return = False

    def feed(self, data: bytes) -> list[Line]:
        """Take bytes; return the lines they complete. Empty lines are left out."""
        lines: list[Line] = []
        if self._terminal:
            self._type(data, lines)
        else:
            self._take(data, lines)
        return lines

    def finish(self) -> list[Line]:
        """Return the unfinished line, if there is one; nothing more will come."""
        lines: list[Line] = []
        self._end(lines)
        return lines

    def _take(self, data: bytes, lines: list[Line]) -> None:
        *ended, left = data.split(b"\n")
        for part in ended:
            self._whole(part, lines)
        self._append(left)

    def _type(self, data: bytes, lines: list[Line]) -> None:
        if not data:
            return
        if self._unfinished:
            data, self._unfinished = self._unfinished + data, b""
        if self._after_return:
            data = data.removeprefix(b"\n")
        kind: int | None = None
        for keys in _KEYS.finditer(data):
            kind = keys.lastindex
            if kind == _TEXT:
                self._append(keys[1])
            elif kind == _LINE:
                self._whole(keys[1], lines)
            elif kind == _RETURN:
                self._end(lines)
            elif kind == _ERASE:
                self._erase(len(keys[0]))
            elif kind == _CONTROL:
                self._control(keys[0])
            elif kind == _UNFINISHED:
                self._unfinished = keys[0]
        self._after_return = kind in (_LINE, _RETURN) and data.endswith(b"\r")

    def _control(self, key: bytes) -> None:
        if key == b"\x17":
            self._erase_word()
        else:
            self._line.clear()

    def _erase(self, times: int) -> None:
        line = self._line
        while times and line:
            times -= 1
            while line.pop() & 0xC0 == 0x80 and line:  # the later bytes of a character in UTF-8
                pass

    def _erase_word(self) -> None:
        stripped = self._line.rstrip(b" \t")
        self._line = stripped[: max(stripped.rfind(b" "), stripped.rfind(b"\t")) + 1]

    def _whole(self, data: bytes, lines: list[Line]) -> None:
        """Append, and end the line."""
        if self._line or len(data) > MAX_LINE:
            self._append(data)
            self._end(lines)
        elif data and not data.isspace():
            lines.append(Line(from_bytes(data.rstrip(b"\r"))))

    def _append(self, data: bytes) -> None:
        room = MAX_LINE - len(self._line)
        self._truncated = len(data) > room or (self._truncated and bool(self._line))
        self._line += data[:room]

    def _end(self, lines: list[Line]) -> None:
        if self._line and not self._line.isspace():
            lines.append(Line(from_bytes(bytes(self._line).rstrip(b"\r")), self._truncated))
        self._line.clear()
