"""What a waiting thread handed to the kernel, read from its memory: bounded, whatever the pointers say.

Another thread of the process may change it before the kernel reads it: it is what was there a moment before.
"""

import os
import struct

_POINTERS = 32
_FIRST = 256
_MORE = 4096
_LARGEST = 1 << 63


def read(mem: int, address: int, size: int) -> bytes:
    """Up to `size` bytes from `address` of the memory whose /proc/PID/mem is `mem`: fewer where there are no more."""
    if not 0 < address < _LARGEST - size:
        return b""
    try:
        return os.pread(mem, size, address)
    except OSError:
        return b""


def string(mem: int, address: int, limit: int) -> tuple[bytes, bool]:
    """The string at `address`, up to `limit` bytes, and whether it goes on."""
    found = bytearray()
    size = _FIRST
    while len(found) <= limit:
        piece = read(mem, address + len(found), min(size, limit + 1 - len(found)))
        end = piece.find(b"\0")
        if end >= 0:
            found += piece[:end]
            return bytes(found), False
        if not piece:
            return bytes(found), False
        found += piece
        size = _MORE
    return bytes(found[:limit]), True


def strings(mem: int, address: int, *, count: int, limit: int) -> tuple[list[bytes], bool]:
    """The strings of a NULL-terminated array, `count` and `limit` bytes at most, and whether there is more."""
    found: list[bytes] = []
    while address:
        pointers = read(mem, address, 8 * min(_POINTERS, count + 1 - len(found)))
        pointers = pointers[: len(pointers) // 8 * 8]
        for (pointer,) in struct.iter_unpack("=Q", pointers):
            if not pointer:
                return found, False
            if len(found) >= count:
                return found, True
            text, more = string(mem, pointer, limit)
            found.append(text)
            limit -= len(text)
            if more or limit <= 0:
                return found, True
        if not pointers:
            break
        address += len(pointers)
    return found, False
