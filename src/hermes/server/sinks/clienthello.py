"""A TLS ClientHello, read from its records, and its JA4 fingerprint."""

import hashlib
from collections.abc import Iterable, Iterator

from hermes.server.sinks.turns import ClientHello

MAX_HELLO = 32 * 1024
"""Bytes of records in which a ClientHello must have come whole."""
MAX_NAME = 255
MAX_PROTOCOLS = 32

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _SIGNATURE_ALGORITHMS, _ALPN, _SUPPORTED_VERSIONS = 0x0000, 0x000D, 0x0010, 0x002B
_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_NOTHING = "0" * 12


class MalformedHello(Exception):
    """These bytes are no ClientHello."""


def parse(records: bytes) -> ClientHello | None:
    """Read a ClientHello from the beginning of a connection; None while it is not whole. Raises MalformedHello."""
    message = bytearray()
    at = 0
    while at + 5 <= len(records):
        length = int.from_bytes(records[at + 3 : at + 5], "big")
        if records[at] != _HANDSHAKE or records[at + 1] != 3 or not 0 < length <= 2**14:
            raise MalformedHello
        message += records[at + 5 : at + 5 + length]
        at += 5 + length
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise MalformedHello
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise MalformedHello
            if len(message) >= 4 + size:
                return _read(_Bytes(bytes(message[4 : 4 + size])))
    if len(records) > MAX_HELLO:
        raise MalformedHello
    return None


def _read(hello: "_Bytes") -> ClientHello:
    version = hello.number(2)
    hello.take(32)  # random
    hello.vector(1)  # session id
    ciphers = [it for it in hello.vector(2).numbers() if not _is_grease(it)]
    hello.vector(1)  # compression methods
    extensions: dict[int, _Bytes] = {}
    kinds = []
    if hello.left:
        listed = hello.vector(2)
        while listed.left:
            kind = listed.number(2)
            extensions.setdefault(kind, listed.vector(2))
            if not _is_grease(kind):
                kinds.append(kind)
    protocols = _protocols(extensions.get(_ALPN))
    versions = _numbers(extensions.get(_SUPPORTED_VERSIONS), 1)
    signatures = _numbers(extensions.get(_SIGNATURE_ALGORITHMS), 2)
    name = "d" if _SERVER_NAME in extensions else "i"
    shown = _VERSIONS.get(max(versions, default=version), "00")
    first = f"t{shown}{name}{min(len(ciphers), 99):02}{min(len(kinds), 99):02}{_alpn_ends(protocols)}"
    described = _hex(sorted(it for it in kinds if it not in (_SERVER_NAME, _ALPN)))
    if described and signatures:
        described += "_" + _hex(signatures)
    return ClientHello(
        ja4=f"{first}_{_digest(_hex(sorted(ciphers)))}_{_digest(described)}",
        server_name=_server_name(extensions.get(_SERVER_NAME)),
        alpn=protocols,
    )


def _is_grease(value: int) -> bool:
    """Whether it is one of the values that mean nothing (RFC 8701)."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


def _hex(values: Iterable[int]) -> str:
    return ",".join(f"{it:04x}" for it in values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NOTHING


def _alpn_ends(protocols: tuple[bytes, ...]) -> str:
    """The first and the last character of the first protocol; of its hexadecimal form where either is no letter or digit."""
    first = protocols[0] if protocols else b""
    if not first:
        return "00"
    text = first.decode("latin-1")
    if not (text[0].isascii() and text[0].isalnum() and text[-1].isascii() and text[-1].isalnum()):
        text = first.hex()
    return text[0] + text[-1]


# ---- what stands in extensions: whatever is malformed there counts as not said


def _numbers(extension: "_Bytes | None", width: int) -> list[int]:
    try:
        return [] if extension is None else [it for it in extension.vector(width).numbers() if not _is_grease(it)]
    except MalformedHello:
        return []


def _protocols(extension: "_Bytes | None") -> tuple[bytes, ...]:
    found: list[bytes] = []
    try:
        listed = _Bytes(b"") if extension is None else extension.vector(2)
        while listed.left and len(found) < MAX_PROTOCOLS:
            found.append(listed.vector(1).rest())
    except MalformedHello:
        pass
    return tuple(found)


def _server_name(extension: "_Bytes | None") -> bytes:
    try:
        listed = _Bytes(b"") if extension is None else extension.vector(2)
        while listed.left:
            kind, name = listed.number(1), listed.vector(2)
            if kind == 0:
                return name.rest()[:MAX_NAME]
    except MalformedHello:
        pass
    return b""


class _Bytes:
    """Bytes that are read from the front. Raises MalformedHello where there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise MalformedHello
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(self.left)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> "_Bytes":
        """What a length of `width` bytes stands before."""
        return _Bytes(self.take(self.number(width)))

    def numbers(self) -> Iterator[int]:
        """The rest as numbers of two bytes."""
        if self.left % 2:
            raise MalformedHello
        while self.left:
            yield self.number(2)
