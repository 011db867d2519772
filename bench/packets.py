"""SSH's packets and data types, without I/O: what the benchmarks' client says and hears on the wire (RFC 4251, 4253, 5647)."""

import hmac
import struct
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_WIRE_PACKET = 256 * 1024


class SSHError(Exception):
    """The server broke off, refused, or said what this client does not understand."""


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def mpint(data: bytes) -> bytes:
    """An unsigned big-endian number as SSH's mpint."""
    data = data.lstrip(b"\0")
    return string(b"\0" + data if data and data[0] & 0x80 else data)


def read_string(data: bytes, offset: int) -> tuple[bytes, int]:
    """The string at `offset` and the offset behind it."""
    if offset + 4 > len(data):
        raise SSHError("packet too short")
    end = offset + 4 + int.from_bytes(data[offset : offset + 4], "big")
    if end > len(data):
        raise SSHError("packet too short")
    return data[offset + 4 : end], end


def pad(payload: bytes, block: int, covered: int) -> bytes:
    """A packet's body: padding length, payload, padding. `covered` bytes before it count for the alignment."""
    padding = block - (covered + 1 + len(payload)) % block
    if padding < 4:
        padding += block
    return bytes([padding]) + payload + bytes(padding)


class Sealer(Protocol):
    """One direction's packets. `open` gives the payload of the packet at an offset and the offset behind it, None when it is
    not whole yet."""

    def seal(self, payload: bytes) -> bytes: ...

    def open(self, wire: bytearray, offset: int) -> tuple[bytes, int] | None: ...


def _checked(length: int) -> int:
    if not 2 <= length <= MAX_WIRE_PACKET:
        raise SSHError(f"packet of {length} bytes")
    return length


class Plain:
    """Packets before the first key exchange."""

    def seal(self, payload: bytes) -> bytes:
        return string(pad(payload, 8, 4))

    def open(self, wire: bytearray, offset: int) -> tuple[bytes, int] | None:
        if len(wire) < offset + 4:
            return None
        end = offset + 4 + _checked(int.from_bytes(wire[offset : offset + 4], "big"))
        if len(wire) < end:
            return None
        return bytes(wire[offset + 5 : end - wire[offset + 4]]), end


class Gcm:
    """aes128-gcm@openssh.com (RFC 5647)."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._aead = AESGCM(key)
        self._fixed, self._counter = iv[:4], int.from_bytes(iv[4:12], "big")

    def _nonce(self) -> bytes:
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFFFFFFFFFFFFFF
        return nonce

    def seal(self, payload: bytes) -> bytes:
        body = pad(payload, 16, 0)
        length = struct.pack(">I", len(body))
        return length + self._aead.encrypt(self._nonce(), body, length)

    def open(self, wire: bytearray, offset: int) -> tuple[bytes, int] | None:
        if len(wire) < offset + 4:
            return None
        length = bytes(wire[offset : offset + 4])
        end = offset + 20 + _checked(int.from_bytes(length, "big"))
        if len(wire) < end:
            return None
        try:
            body = self._aead.decrypt(self._nonce(), bytes(wire[offset + 4 : end]), length)
        except InvalidTag as error:
            raise SSHError("packet with a wrong tag") from error
        return body[1 : len(body) - body[0]], end


class CtrHmac:
    """aes128-ctr with hmac-sha2-256, the MAC over the clear packet (RFC 4253, RFC 4344). `sequence`: packets that went this way
    before."""

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes, sequence: int) -> None:
        cipher = Cipher(algorithms.AES(key), modes.CTR(iv))
        self._encrypt, self._decrypt = cipher.encryptor().update, cipher.decryptor().update
        self._mac_key, self._sequence = mac_key, sequence
        self._head = b""

    def _mac(self, packet: bytes) -> bytes:
        mac = hmac.digest(self._mac_key, struct.pack(">I", self._sequence) + packet, "sha256")
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return mac

    def seal(self, payload: bytes) -> bytes:
        packet = string(pad(payload, 16, 4))
        return self._encrypt(packet) + self._mac(packet)

    def open(self, wire: bytearray, offset: int) -> tuple[bytes, int] | None:
        if len(wire) < offset + 16:
            return None
        if not self._head:
            self._head = self._decrypt(bytes(wire[offset : offset + 16]))
        end = offset + 4 + _checked(int.from_bytes(self._head[:4], "big"))
        if len(wire) < end + 32:
            return None
        packet = self._head + self._decrypt(bytes(wire[offset + 16 : end]))
        self._head = b""
        if not hmac.compare_digest(self._mac(packet), bytes(wire[end : end + 32])):
            raise SSHError("packet with a wrong MAC")
        return packet[5 : len(packet) - packet[4]], end + 32


def negotiate(ours: tuple[bytes, ...], theirs: bytes) -> bytes:
    """The first of ours that they have (RFC 4253, 7.1)."""
    offered = theirs.split(b",")
    for name in ours:
        if name in offered:
            return name
    raise SSHError(f"no common algorithm: {ours!r} against {theirs!r}")
