"""The lossless recording: every byte of every stream with its time, as binary frames; frames to bytes and back, without I/O.

    file    = magic (8 bytes) · version u16 · length u32 · CRC-32 u32 · facts (JSON, `length` bytes) · frame*
    frame   = length u32 · kind u8 · time u64 · CRC-32 u32 · payload (`length` bytes)

Numbers are little-endian; `time` is in nanoseconds since the start and never decreases; a CRC covers all that stands before it
in its header or frame, and the payload. A file that ends inside a frame was torn there: what stands before is whole.
"""

import enum
import struct
import zlib
from typing import NamedTuple

import msgspec

from hermes.recording.facts import Facts

MAGIC = b"\x89HREC\r\n\x1a"
VERSION = 1
MAX_PAYLOAD = 64 * 1024
"""Most bytes in one frame; more are written as several frames of the same time. Larger pieces are slower to escape: their
buffers come from, and go back to, the kernel each time."""
MAX_FACTS = 4 * 1024 * 1024

_FILE = struct.Struct("<8sHI")
_FRAME = struct.Struct("<IBQ")
_CRC = struct.Struct("<I")
_SIZE = struct.Struct("<IIII")
_FILE_HEADER = _FILE.size + _CRC.size
FRAME_HEADER = _FRAME.size + _CRC.size
"""Bytes a frame takes besides its payload."""
_U32 = 2**32 - 1


class Kind(enum.IntEnum):
    """What a frame holds."""

    STDIN = 1
    """Bytes from the client."""
    STDOUT = 2
    """Bytes to the client; of a channel with a terminal, all of them."""
    STDERR = 3
    """Bytes to the client, on its stderr."""
    STDIN_EOF = 4
    """The client will send no more; no payload."""
    RESIZE = 5
    """Width and height in characters, width and height in pixels: four u32."""
    MARKER = 6
    """A remark of Hermes, in UTF-8."""
    END = 7
    """The recording was closed in good order: JSON, `{"status": int|null, "signal": string|null}`. Always the last frame."""


class Ending(enum.Enum):
    """How the bytes read so far end."""

    COMPLETE = "complete"
    """With an END frame."""
    OPEN = "open"
    """At the border of a frame: the recording goes on, or its writer was killed."""
    TORN = "torn"
    """Inside a header or frame: its writer was killed or the disk was full while it was written."""
    DAMAGED = "damaged"
    """At something that no recorder wrote. Nothing after it is read."""


class Frame(NamedTuple):
    """`data` of one `kind`, `time` nanoseconds after the start."""

    time: int
    kind: Kind
    data: bytes


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How the channel's process ended; both None: it is not known."""

    status: int | None = None
    signal: str | None = None


def encode_header(facts: Facts) -> bytes:
    """Return the first bytes of a file."""
    text = msgspec.json.encode(facts)
    head = _FILE.pack(MAGIC, VERSION, len(text))
    return head + _CRC.pack(zlib.crc32(text, zlib.crc32(head))) + text


def encode(time: int, kind: Kind, data: bytes = b"") -> bytes:
    """Return a frame; `data` is at most MAX_PAYLOAD bytes."""
    head = _FRAME.pack(len(data), kind, time)
    return b"".join((head, _CRC.pack(zlib.crc32(data, zlib.crc32(head))), data))


def encode_size(width: int, height: int, pixel_width: int = 0, pixel_height: int = 0) -> bytes:
    """Return a RESIZE frame's payload."""
    return _SIZE.pack(*(min(max(size, 0), _U32) for size in (width, height, pixel_width, pixel_height)))


def decode_size(data: bytes) -> tuple[int, int, int, int]:
    """Return width, height, pixel width, pixel height; all 0 when `data` is no RESIZE frame's payload."""
    if len(data) != _SIZE.size:
        return (0, 0, 0, 0)
    width, height, pixel_width, pixel_height = _SIZE.unpack(data)
    return (width, height, pixel_width, pixel_height)


def encode_end(status: int | None, signal: str | None) -> bytes:
    """Return an END frame's payload."""
    return msgspec.json.encode(End(status=status, signal=signal))


def decode_end(data: bytes) -> End:
    """Return what an END frame's payload says; nothing known when it is none."""
    try:
        return msgspec.json.decode(data, type=End)
    except (msgspec.MsgspecError, UnicodeError):
        return End()


class Decoder:
    """Turn the bytes of a file, in pieces of any size, into frames. Never raises, whatever it is fed."""

    def __init__(self) -> None:
        self.facts: Facts | None = None
        self._buffer = bytearray()
        self._latest = 0
        self._stopped: Ending | None = None

    @property
    def ending(self) -> Ending:
        """How what was fed so far ends."""
        if self._stopped is not None:
            return self._stopped
        return Ending.TORN if self._buffer or self.facts is None else Ending.OPEN

    def feed(self, piece: bytes) -> list[Frame]:
        """Take `piece` and return the frames it completes."""
        frames: list[Frame] = []
        if self._stopped is not None:
            return frames
        self._buffer += piece
        at = 0
        if self.facts is None:
            at = self._read_header()
        if self.facts is not None:
            while self._stopped is None and (frame := self._read_frame(at)) is not None:
                at += FRAME_HEADER + len(frame.data)
                frames.append(frame)
        if self._stopped is None:
            del self._buffer[:at]
        else:
            self._buffer.clear()
        return frames

    def _read_header(self) -> int:
        """Set `facts` when the header is whole and return its length, else 0."""
        buffer = self._buffer
        start = bytes(buffer[: len(MAGIC)])
        if not MAGIC.startswith(start):
            self._stopped = Ending.DAMAGED
        if self._stopped or len(buffer) < _FILE_HEADER:
            return 0
        _, version, length = _FILE.unpack_from(buffer)
        if version != VERSION or length > MAX_FACTS:
            self._stopped = Ending.DAMAGED
            return 0
        end: int = _FILE_HEADER + length
        if len(buffer) < end:
            return 0
        text = bytes(buffer[_FILE_HEADER:end])
        (crc,) = _CRC.unpack_from(buffer, _FILE.size)
        try:
            if crc != zlib.crc32(text, zlib.crc32(bytes(buffer[: _FILE.size]))):
                self._stopped = Ending.DAMAGED
                return 0
            self.facts = msgspec.json.decode(text, type=Facts)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._stopped = Ending.DAMAGED
            return 0
        return end

    def _read_frame(self, at: int) -> Frame | None:
        """Return the frame at `at`, or None when it is not whole yet or no frame stands there."""
        buffer = self._buffer
        if len(buffer) - at < FRAME_HEADER:
            return None
        length, kind, time = _FRAME.unpack_from(buffer, at)
        if length > MAX_PAYLOAD or kind not in _KINDS or time < self._latest:
            self._stopped = Ending.DAMAGED
            return None
        start = at + FRAME_HEADER
        if len(buffer) - start < length:
            return None
        data = bytes(memoryview(buffer)[start : start + length])
        (crc,) = _CRC.unpack_from(buffer, at + _FRAME.size)
        if crc != zlib.crc32(data, zlib.crc32(bytes(buffer[at : at + _FRAME.size]))):
            self._stopped = Ending.DAMAGED
            return None
        self._latest = time
        if kind == Kind.END:
            self._stopped = Ending.COMPLETE
        return Frame(time, Kind(kind), data)


_KINDS = frozenset(Kind)
