"""What recording costs, and what its parts and their alternatives cost: `python -m bench.recorder [DIRECTORY]`.

Rates are in MB of traffic a second of wall time, the best of several runs on one thread; files are written in DIRECTORY (a
temporary one by default), so its file system counts.
"""

import codecs
import json
import os
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec

from hermes.config.keeping import RecordingConfig
from hermes.recording import lossless
from hermes.recording.lossless import Kind
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo

RUNS = 3
AMOUNT = 64 * 1024 * 1024
KEYSTROKES = 20_000
IDLE = 250
SIZES = (4 * 1024, 64 * 1024, 256 * 1024)
CONTENTS = {
    "log text": b"Nov 22 12:45:53 srv01 sshd[1024]: Accepted password for root from 192.0.2.7 port 4711 ssh2\n",
    "coloured ls": b"\x1b[0m\x1b[01;34mdir\x1b[0m  \x1b[01;32mrun.sh\x1b[0m  notes.txt\r\n",
    "UTF-8 text": "Übergröße, naïve café, Привет, 你好\n".encode(),
    "zeros": bytes(64),
    "random": b"",
}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        root = Path(name)
        numbers = count()
        _title("one channel, both recordings", *(f"{size // 1024} KiB" for size in SIZES))
        for what in CONTENTS:
            _row(what, *(f"{_rate(_recorder(root, numbers), _sample(what, size)):.0f} MB/s" for size in SIZES))
        _title("parts and alternatives, log text", *(f"{size // 1024} KiB" for size in SIZES))
        for what, way in _ways(root, numbers):
            _row(what, *(f"{_rate(way, _sample('log text', size)):.0f} MB/s" for size in SIZES))
        _title("other costs", "each")
        _row("a keystroke", f"{_keystroke(root, numbers) * 1e6:.1f} µs")
        _row("start and close", f"{_start_close(root, numbers) * 1e6:.0f} µs")
        _row("memory of an idle recorder", f"{_memory(root, numbers):.0f} bytes")


def _sample(what: str, size: int) -> bytes:
    text = CONTENTS[what]
    return (text * (size // len(text) + 1))[:size] if text else os.urandom(size)


def _open(root: Path, number: int) -> SessionRecorder:
    session = SessionInfo(f"bench{number}", "root", "192.0.2.7", 4711)
    recorder = SessionRecorder(RecordingConfig(output_dir=root), session, pty_request=PTYRequest("xterm-256color", 80, 24))
    recorder.start()
    return recorder


Way = Callable[[], tuple[Callable[[bytes], object], Callable[[], None]]]
"""Returns what is called with each piece, and what is called in the end."""


def _recorder(root: Path, numbers: Iterator[int]) -> Way:
    def begin() -> tuple[Callable[[bytes], object], Callable[[], None]]:
        recorder = _open(root, next(numbers))

        def end() -> None:
            recorder.close()
            recorder.path.unlink()
            recorder.path.with_suffix(".rec").unlink()

        return recorder.output, end

    return begin


def _file(root: Path, encode: Callable[[bytes], bytes]) -> Way:
    def begin() -> tuple[Callable[[bytes], object], Callable[[], None]]:
        path = root / "plain"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

        def end() -> None:
            os.close(fd)
            path.unlink()

        return lambda data: os.write(fd, encode(data)), end

    return begin


def _pure(work: Callable[[bytes], object]) -> Way:
    return lambda: (work, lambda: None)


def _ways(root: Path, numbers: Iterator[int]) -> Iterator[tuple[str, Way]]:
    yield "both recordings", _recorder(root, numbers)
    yield "the lossless one alone", _file(root, _frames)
    yield "write(2) alone", _file(root, lambda data: data)
    yield "CRC-32", _pure(zlib.crc32)
    yield "bytes to text: ASCII", _pure(lambda data: data.isascii() and data.decode("ascii"))
    yield "bytes to text: incremental decoder", _pure(codecs.getincrementaldecoder("utf-8")("replace").decode)
    yield "text to JSON: msgspec", _pure(lambda data: msgspec.json.encode(data.decode("ascii")))
    yield "text to JSON: json", _pure(lambda data: json.dumps(data.decode("ascii")).encode())


def _frames(data: bytes) -> bytes:
    most = lossless.MAX_PAYLOAD
    return b"".join(lossless.encode(0, Kind.STDOUT, data[at : at + most]) for at in range(0, len(data), most))


def _rate(way: Way, data: bytes) -> float:
    """Return MB a second, the best of RUNS."""
    best = 0.0
    for _ in range(RUNS):
        work, end = way()
        pieces = AMOUNT // len(data)
        began = time.perf_counter()
        for _ in range(pieces):
            work(data)
        best = max(best, pieces * len(data) / (time.perf_counter() - began) / 1e6)
        end()
    return best


def _keystroke(root: Path, numbers: Iterator[int]) -> float:
    """Return seconds for one byte in."""
    recorder = _open(root, next(numbers))
    best = float("inf")
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(KEYSTROKES):
            recorder.input(b"x")
        best = min(best, (time.perf_counter() - began) / KEYSTROKES)
    recorder.close()
    return best


def _start_close(root: Path, numbers: Iterator[int]) -> float:
    best = float("inf")
    for _ in range(200):
        number = next(numbers)
        began = time.perf_counter()
        _open(root, number).close(exit_status=0)
        best = min(best, time.perf_counter() - began)
    return best


def _memory(root: Path, numbers: Iterator[int]) -> float:
    """Return the bytes one recorder holds after some traffic of all streams, its session's data not counted."""
    held = []
    sessions = [SessionInfo(f"bench{next(numbers)}", "root", "192.0.2.7", 4711) for _ in range(IDLE)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for session in sessions:
        recorder = SessionRecorder(RecordingConfig(output_dir=root), session)
        recorder.start()
        recorder.input("é".encode())
        recorder.output("é".encode())
        recorder.output("é".encode(), stderr=True)
        held.append(recorder)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for recorder in held:
        recorder.close()
    return used / len(held)


def _title(*cells: str) -> None:
    print()
    _row(*cells)


def _row(first: str, *others: str) -> None:
    print(f"{first:<40}" + "".join(f"{cell:>14}" for cell in others))


if __name__ == "__main__":
    main()
