"""A lean SSH client on a blocking socket: the one client that every server is measured with.

It does what a measurement needs and nothing more: one key exchange (curve25519-sha256, ssh-ed25519, the signature checked),
aes128-gcm (aes128-ctr with hmac-sha2-256 for Cowrie, which knows no GCM), password authentication, session channels. A whole
connection costs it about a millisecond, several times less than a full client library: it does not hide the server's own time.
"""

import hashlib
import os
import socket
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from bench.packets import CtrHmac, Gcm, Plain, Sealer, SSHError, mpint, negotiate, read_string, string

VERSION = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7"
KEX = (b"curve25519-sha256", b"curve25519-sha256@libssh.org")
HOST_KEYS = (b"ssh-ed25519",)
CIPHERS = (b"aes128-gcm@openssh.com", b"aes128-ctr")
MACS = (b"hmac-sha2-256",)
COMPRESSION = (b"none",)

WINDOW = 2 * 1024 * 1024
MAX_PACKET = 32768
TAIL = 512
READ_SIZE = 256 * 1024

DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG, SERVICE_REQUEST, SERVICE_ACCEPT, EXT_INFO = 1, 2, 3, 4, 5, 6, 7
KEXINIT, NEWKEYS, ECDH_INIT, ECDH_REPLY = 20, 21, 30, 31
AUTH_REQUEST, AUTH_FAILURE, AUTH_SUCCESS, AUTH_BANNER = 50, 51, 52, 53
GLOBAL_REQUEST, REQUEST_FAILURE = 80, 82
CHANNEL_OPEN, OPEN_CONFIRMATION, OPEN_FAILURE, WINDOW_ADJUST, DATA, EXTENDED_DATA, EOF, CLOSE = range(90, 98)
CHANNEL_REQUEST, CHANNEL_SUCCESS, CHANNEL_FAILURE = 98, 99, 100


@dataclass
class Channel:
    """A session channel, as far as it has come. `received` counts bytes of output, `tail` holds the last of them."""

    id: int
    remote: int = -1
    open: bool = False
    received: int = 0
    tail: bytes = b""
    status: int | None = None
    refused: bool = False
    closed: bool = False
    window: int = WINDOW

    def take(self, data: bytes) -> None:
        self.received += len(data)
        self.tail = data[-TAIL:] if len(data) >= TAIL else (self.tail + data)[-TAIL:]


class Connection:
    """One SSH connection over TCP, through key exchange; use as a context manager.

    With `quickack`, TCP_QUICKACK is set again after every read, so that a server that sends small packets with Nagle's algorithm
    on does not wait for delayed acknowledgements. Every blocking call raises TimeoutError after `timeout` seconds.
    """

    def __init__(self, address: tuple[str, int], *, quickack: bool = True, timeout: float = 30.0) -> None:
        self._quickack = quickack
        self._in = bytearray()
        self._offset = 0
        self._sealer: Sealer = Plain()
        self._opener: Sealer = Plain()
        self._sent = self._read = 0
        self._channels: dict[int, Channel] = {}
        self.socket = socket.create_connection(address, timeout)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._acknowledge()
            self._handshake()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say good-bye and close."""
        try:
            self.send(bytes([DISCONNECT]) + struct.pack(">I", 11) + string(b"disconnected by user") + string(b""))
        except OSError:
            pass  # The server was faster.
        finally:
            self.socket.close()

    # ---- packets

    def _acknowledge(self) -> None:
        if self._quickack:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send(self, *payloads: bytes) -> None:
        """Send packets in one write."""
        self._sent += len(payloads)
        self.socket.sendall(b"".join(map(self._sealer.seal, payloads)))

    def fill(self) -> None:
        """Read what the socket has, waiting for at least one byte."""
        if self._offset:
            del self._in[: self._offset]
            self._offset = 0
        data = self.socket.recv(READ_SIZE)
        self._acknowledge()
        if not data:
            raise SSHError("connection closed by the server")
        self._in += data

    def next_packet(self) -> bytes | None:
        """The next packet already read that is not just housekeeping, or None."""
        while (opened := self._opener.open(self._in, self._offset)) is not None:
            payload, self._offset = opened
            self._read += 1
            kind = payload[0]
            if kind == DISCONNECT:
                raise SSHError(f"disconnected: {read_string(payload, 5)[0].decode('utf-8', 'replace')}")
            if kind == GLOBAL_REQUEST:
                _, end = read_string(payload, 1)
                if payload[end]:
                    self.send(bytes([REQUEST_FAILURE]))
            elif kind not in (IGNORE, UNIMPLEMENTED, DEBUG, EXT_INFO, AUTH_BANNER):
                return payload
        return None

    def _packet(self) -> bytes:
        while (payload := self.next_packet()) is None:
            self.fill()
        return payload

    def _expect(self, kind: int) -> bytes:
        payload = self._packet()
        if payload[0] != kind:
            raise SSHError(f"message {payload[0]} where {kind} was due")
        return payload

    # ---- key exchange

    def _handshake(self) -> None:
        lists = (KEX, HOST_KEYS, CIPHERS, CIPHERS, MACS, MACS, COMPRESSION, COMPRESSION, (), ())
        ours = bytes([KEXINIT]) + os.urandom(16) + b"".join(string(b",".join(names)) for names in lists) + bytes(5)
        self.socket.sendall(VERSION + b"\r\n" + self._sealer.seal(ours))
        self._sent += 1
        server_version = self._server_version()
        theirs = self._expect(KEXINIT)
        offered, offset = [], 17
        for _ in lists:
            names, offset = read_string(theirs, offset)
            offered.append(names)
        chosen = [negotiate(mine, yours) for mine, yours in zip(lists[:4], offered[:4], strict=True)]

        secret = X25519PrivateKey.generate()
        public = secret.public_key().public_bytes_raw()
        self.send(bytes([ECDH_INIT]) + string(public))
        reply = self._expect(ECDH_REPLY)
        host_key, offset = read_string(reply, 1)
        server_public, offset = read_string(reply, offset)
        signature, _ = read_string(reply, offset)
        shared = mpint(secret.exchange(X25519PublicKey.from_public_bytes(server_public)))
        parts = (VERSION, server_version, ours, theirs, host_key, public, server_public)
        digest = hashlib.sha256(b"".join(map(string, parts)) + shared).digest()
        try:
            key = Ed25519PublicKey.from_public_bytes(read_string(host_key, 15)[0])
            key.verify(read_string(signature, 15)[0], digest)
        except (InvalidSignature, ValueError) as error:
            raise SSHError("the server's signature is wrong") from error

        self.send(bytes([NEWKEYS]))

        def derive(letter: bytes) -> bytes:
            return hashlib.sha256(shared + digest + letter + digest).digest()

        def cipher(name: bytes, letters: bytes, sequence: int) -> Sealer:
            iv, key, mac = (derive(letters[i : i + 1]) for i in range(3))
            return Gcm(key[:16], iv[:12]) if name == CIPHERS[0] else CtrHmac(key[:16], iv[:16], mac, sequence)

        self._sealer = cipher(chosen[2], b"ACE", self._sent)
        self._expect(NEWKEYS)
        self._opener = cipher(chosen[3], b"BDF", self._read)

    def _server_version(self) -> bytes:
        for _ in range(64):
            while (end := self._in.find(b"\n", self._offset)) < 0:
                if len(self._in) > 65536:
                    raise SSHError("no identification string")
                self.fill()
            line = bytes(self._in[self._offset : end]).rstrip(b"\r")
            self._offset = end + 1
            if line.startswith(b"SSH-2.0-"):
                return line
        raise SSHError("no identification string")

    # ---- authentication

    def authenticate(self, user: str, password: str) -> bool:
        """Try `none`, then the password, as ssh and most bots do; whether the server let us in."""
        head = bytes([AUTH_REQUEST]) + string(user.encode()) + string(b"ssh-connection")
        self.send(bytes([SERVICE_REQUEST]) + string(b"ssh-userauth"))
        self._expect(SERVICE_ACCEPT)
        for method in (string(b"none"), string(b"password") + b"\0" + string(password.encode())):
            self.send(head + method)
            verdict = self._packet()
            if verdict[0] == AUTH_SUCCESS:
                return True
            if verdict[0] != AUTH_FAILURE:
                raise SSHError(f"message {verdict[0]} during authentication")
        return False

    # ---- channels

    def start(self, command: str | None, *, pty: bool = False) -> Channel:
        """Open a session channel and ask for a command, or a shell without one. Return without waiting for the answer."""
        channel = Channel(len(self._channels))
        self._channels[channel.id] = channel
        self.send(bytes([CHANNEL_OPEN]) + string(b"session") + struct.pack(">III", channel.id, WINDOW, MAX_PACKET))
        while not channel.open:
            self._dispatch(self._packet())
        requests = []
        if pty:
            terminal = string(b"xterm") + struct.pack(">IIII", 80, 24, 0, 0) + string(b"\0")
            requests.append(self._request(channel, b"pty-req", terminal))
        if command is None:
            requests.append(self._request(channel, b"shell", b""))
        else:
            requests.append(self._request(channel, b"exec", string(command.encode())))
        self.send(*requests)
        return channel

    @staticmethod
    def _request(channel: Channel, kind: bytes, rest: bytes) -> bytes:
        return bytes([CHANNEL_REQUEST]) + struct.pack(">I", channel.remote) + string(kind) + b"\1" + rest

    def type(self, channel: Channel, data: bytes) -> None:
        """Send input. For keystrokes: the server's window is taken to be wide enough."""
        self.send(bytes([DATA]) + struct.pack(">I", channel.remote) + string(data))

    def pump(self) -> None:
        """Wait for one packet and take it in."""
        self._dispatch(self._packet())

    def drain(self) -> None:
        """Read once and take in every packet that has come whole: for callers that wait on the socket themselves."""
        self.fill()
        while (payload := self.next_packet()) is not None:
            self._dispatch(payload)

    def wait_closed(self, channel: Channel) -> None:
        """Return when the server has closed the channel."""
        while not channel.closed:
            self.pump()

    def _dispatch(self, payload: bytes) -> None:
        kind = payload[0]
        try:
            channel = self._channels[int.from_bytes(payload[1:5], "big")]
        except KeyError:
            raise SSHError(f"message {kind} for no channel of ours") from None
        if kind in (DATA, EXTENDED_DATA):
            data, _ = read_string(payload, 5 if kind == DATA else 9)
            channel.take(data)
            channel.window -= len(data)
            if channel.window < WINDOW // 2:
                self.send(bytes([WINDOW_ADJUST]) + struct.pack(">II", channel.remote, WINDOW - channel.window))
                channel.window = WINDOW
        elif kind == CHANNEL_REQUEST:
            name, end = read_string(payload, 5)
            if name == b"exit-status":
                channel.status = int.from_bytes(payload[end + 1 : end + 5], "big")
            elif payload[end]:
                self.send(bytes([CHANNEL_FAILURE]) + struct.pack(">I", channel.remote))
        elif kind == OPEN_CONFIRMATION:
            channel.remote, channel.open = int.from_bytes(payload[5:9], "big"), True
        elif kind == OPEN_FAILURE:
            raise SSHError(f"channel refused: {read_string(payload, 9)[0].decode('utf-8', 'replace')}")
        elif kind == CHANNEL_FAILURE:
            channel.refused = True
            raise SSHError("the server refused the shell, command or terminal")
        elif kind == CLOSE:
            if not channel.closed:
                channel.closed = True
                self.send(bytes([CLOSE]) + struct.pack(">I", channel.remote))
        elif kind not in (WINDOW_ADJUST, EOF, CHANNEL_SUCCESS):
            raise SSHError(f"unexpected message {kind}")
