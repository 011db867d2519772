"""The PROXY protocol, versions 1 and 2, as bytes in and addresses out.

Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass

_V1_PREFIX = b"PROXY "
_V1_MAX = 107
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEADER = len(_V2_SIGNATURE) + 4
_V2_MAX = 2048
"""Longest version 2 header accepted, in bytes: addresses plus any sensible TLVs."""


class ProxyHeaderError(ValueError):
    """The bytes are no PROXY protocol header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header of `length` bytes. Without addresses (LOCAL, UNKNOWN) the connection's own hold."""

    length: int
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None


def parse(data: bytes) -> ProxyHeader | None:
    """Return the header that `data` begins with, or None when more bytes are needed.

    Raises ProxyHeaderError when no further byte could make it one.
    """
    if data[: len(_V2_SIGNATURE)] == _V2_SIGNATURE[: len(data)]:
        return _parse_v2(data) if len(data) >= _V2_HEADER else None
    if data[: len(_V1_PREFIX)] == _V1_PREFIX[: len(data)]:
        return _parse_v1(data)
    raise ProxyHeaderError("no PROXY protocol signature")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_MAX)
    if end < 0:
        if len(data) >= _V1_MAX:
            raise ProxyHeaderError("version 1 header too long")
        return None
    try:
        fields = data[:end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyHeaderError("version 1 header is not ASCII") from None
    if fields[1] == "UNKNOWN":
        return ProxyHeader(end + 2)
    if fields[1] not in ("TCP4", "TCP6") or len(fields) != 6:
        raise ProxyHeaderError("malformed version 1 header")
    version = 4 if fields[1] == "TCP4" else 6
    return ProxyHeader(
        end + 2, (_address(fields[2], version), _port(fields[4])), (_address(fields[3], version), _port(fields[5]))
    )


def _parse_v2(data: bytes) -> ProxyHeader | None:
    version_command, family, length = struct.unpack_from("!BBH", data, len(_V2_SIGNATURE))
    total = _V2_HEADER + length
    if version_command >> 4 != 2 or version_command & 0xF not in (0, 1) or total > _V2_MAX:
        raise ProxyHeaderError("malformed version 2 header")
    if len(data) < total:
        return None
    if version_command & 0xF == 0:
        return ProxyHeader(total)
    layouts = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}
    if family not in layouts:
        return ProxyHeader(total)
    address_family, size = layouts[family]
    if length < 2 * size + 4:
        raise ProxyHeaderError("version 2 header too short for its addresses")
    source, destination, source_port, destination_port = struct.unpack_from(f"!{size}s{size}sHH", data, _V2_HEADER)
    return ProxyHeader(
        total,
        (socket.inet_ntop(address_family, source), source_port),
        (socket.inet_ntop(address_family, destination), destination_port),
    )


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ProxyHeaderError("malformed address in version 1 header") from None
    if address.version != version:
        raise ProxyHeaderError("address family differs from the one declared")
    return str(address)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ProxyHeaderError("malformed port in version 1 header")
    return int(text)
