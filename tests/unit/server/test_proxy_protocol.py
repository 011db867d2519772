"""PROXY protocol headers, whole, in pieces and hostile."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.proxy_protocol import ProxyHeader, ProxyHeaderError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 22\r\n"
V1_6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 22\r\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body)) + body


V2 = v2(1, 0x11, socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2") + struct.pack("!HH", 56324, 22))
V2_6 = v2(
    1, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + struct.pack("!HH", 56324, 22) + b"\x03\x00\x04tlvs",
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "source", "destination"),
    [
        (V1, ("192.0.2.1", 56324), ("198.51.100.2", 22)),
        (V1_6, ("2001:db8::1", 56324), ("2001:db8::2", 22)),
        (V2, ("192.0.2.1", 56324), ("198.51.100.2", 22)),
        (V2_6, ("2001:db8::1", 56324), ("2001:db8::2", 22)),
        (b"PROXY UNKNOWN\r\n", None, None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, None),
        (v2(0, 0x00, b""), None, None),
        (v2(1, 0x31, b"x" * 216), None, None),
    ],
)
def test_whole_headers(data: bytes, source: tuple[str, int] | None, destination: tuple[str, int] | None) -> None:
    assert parse(data + b"SSH-2.0-x\r\n") == ProxyHeader(len(data), source, destination)


@pytest.mark.parametrize("data", [V1, V1_6, V2, V2_6])
def test_every_prefix_waits_for_more(data: bytes) -> None:
    for length in range(len(data)):
        assert parse(data[:length]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        b"PROXY TCP4 2001:db8::1 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 \xb2 2\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY " + b"x" * 200,
        v2(2, 0x11, b"x" * 12),
        v2(1, 0x11, b"x" * 11),
        v2(1, 0x11, b"x" * 4000),
        SIGNATURE + b"\x11\x11\x00\x0c" + b"x" * 12,
    ],
)
def test_malformed_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(data)


@given(st.one_of(st.binary(), st.binary().map(lambda rest: b"PROXY " + rest), st.binary().map(lambda rest: SIGNATURE + rest)))
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        header = parse(data)
    except ProxyHeaderError:
        return
    assert header is None or 0 < header.length <= len(data)
