"""asyncssh's server connection, bent where sshd behaves otherwise or where we must see what asyncssh hides.

Everything here that begins with an underscore overrides a private method of asyncssh; `pyproject.toml` pins the version and
`tests/unit/server/test_connection.py` checks that each of them still exists there.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import asyncssh
from asyncssh.constants import (
    DISC_PROTOCOL_ERROR,
    MSG_CHANNEL_OPEN,
    MSG_DISCONNECT,
    MSG_GLOBAL_REQUEST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.packet import Boolean, NameList, PacketDecodeError, SSHPacket, SSHPacketHandler, String, UInt32
from asyncssh.public_key import KeyImportError, decode_ssh_public_key

from hermes.config import ServerConfig
from hermes.events import from_bytes
from hermes.server import persona
from hermes.server.bounds import MIN_PACKET, BoundedConnection
from hermes.server.proxy_protocol import ProxyHeader, ProxyHeaderError, parse

MSG_USERAUTH_PK_OK = 60  # RFC 4252, 7
MSG_USERAUTH_INFO_REQUEST = 60  # RFC 4256, 5
MSG_USERAUTH_INFO_RESPONSE = 61

PROXY_PATIENCE = 10.0
"""Seconds within which a PROXY header must have come whole."""


class Lobby:
    """Connections whose PROXY header has not come yet: nobody knows of whom, so they are limited together."""

    def __init__(self, on_full: Callable[[], None]) -> None:
        """`on_full` is called for each one that is turned away."""
        self._on_full = on_full
        self._waiting: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, connection: "Connection", most: int) -> bool:
        """Let the connection wait, unless `most` do already."""
        if len(self._waiting) >= most:
            self._on_full()
            return False
        self._waiting.add(connection)
        return True

    def leave(self, connection: "Connection") -> None:
        self._waiting.discard(connection)


class Connection(BoundedConnection):
    """One attacker's SSH connection. What it means is decided by its owner, the `Visitor`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions, config: ServerConfig, lobby: Lobby
    ) -> None:  # fmt: skip
        super().__init__(loop, options, config)
        self._lobby = lobby
        self._proxy_buffer = b"" if config.proxy_protocol else None
        self._proxy_transport: asyncio.Transport | None = None
        self._proxy_timer: asyncio.TimerHandle
        self._seen_kexinit = False
        self._auth_service: bytes | None = None

    # ---- PROXY protocol: SSH begins only when the header is whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._proxy_buffer is None:
            super().connection_made(transport)
        else:
            assert isinstance(transport, asyncio.Transport)
            self._proxy_transport = transport
            self._proxy_timer = self._loop.call_later(PROXY_PATIENCE, transport.abort)
            if not self._lobby.enter(self, self._config.max_connections):
                transport.abort()

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        if self._proxy_buffer is None:
            super().data_received(data, datatype)
            return
        assert self._proxy_transport is not None
        self._proxy_buffer += data
        try:
            header = parse(self._proxy_buffer)
        except ProxyHeaderError:
            self._proxy_transport.abort()
            return
        if header is not None:
            self._proxy_timer.cancel()
            self._lobby.leave(self)
            rest = self._proxy_buffer[header.length :]
            self._proxy_buffer = None
            super().connection_made(cast(asyncio.Transport, _Addressed(self._proxy_transport, header)))
            if rest and self._transport is not None:
                super().data_received(rest, datatype)

    def connection_lost(self, exc: Exception | None = None) -> None:
        if self._proxy_buffer is not None:
            self._proxy_timer.cancel()
            self._lobby.leave(self)
            return
        super().connection_lost(exc)

    def refuse(self, text: bytes) -> None:
        """Send `text` instead of an identification string and close."""
        self._last_word(text)
        self._cleanup(None)

    def _last_word(self, text: bytes) -> None:
        """Send `text` outside the protocol, and nothing after it."""
        if self._transport is not None:
            self._transport.write(text)
            self._transport.close()
            self._transport = None

    def _send_version(self) -> None:
        if self._transport is not None:
            super()._send_version()

    # ---- what the client says of itself

    def _recv_version(self) -> bool:
        end = self._inpbuf.find(b"\n")
        if end >= 0 or len(self._inpbuf) > 8192:
            line = self._inpbuf[: end if end >= 0 else 255].rstrip(b"\r")
            self._owner.version_received(line[:255])
            answer = persona.identification_error(line)
            if answer is not None:
                self._last_word(answer)
                self._loop.call_soon(self._cleanup, asyncssh.ProtocolError("invalid identification string"))
                return False
        return super()._recv_version()

    def _process_kexinit(self, pkttype: int, pktid: int, packet: SSHPacket) -> Coroutine[Any, Any, None]:
        if not self._seen_kexinit:
            self._seen_kexinit = True
            self._owner.kexinit_received(packet.get_full_payload())
        return super()._process_kexinit(pkttype, pktid, packet)

    async def reload_config(self) -> None:
        """Nothing to reload: rebuilding all options here costs a third of a failed login's CPU."""

    # ---- authentication: every try is seen whole, in the client's bytes, and answered as sshd does

    def _process_userauth_request(self, _pkttype: int, _pktid: int, packet: SSHPacket) -> Awaitable[None] | None:
        username = packet.get_string()
        service = packet.get_string()
        method = packet.get_string()
        if self._auth_complete:
            if self._auth_final:
                raise asyncssh.ProtocolError("unexpected userauth request")
            return None
        self._auth = None
        text = from_bytes(username[:1024])
        if self._auth_service is None:
            self._auth_service, self._username = service, text
            self._send_banner()
        elif (self._auth_service, self._username) != (service, text):
            self._state_last_try(text, method, packet)
            change = f"({self._username},{from_bytes(self._auth_service)}) -> ({text},{from_bytes(service[:256])})"
            raise asyncssh.ProtocolError(f"Change of username or service not allowed: {change}")
        if service != b"ssh-connection":
            raise asyncssh.ServiceNotAvailable("unexpected service in auth request")
        if method == b"password":
            return self._try_password(text, packet)
        if method == b"publickey":
            return self._try_public_key(text, packet)
        if method == b"keyboard-interactive" and "keyboard-interactive" in self._owner.login.methods:
            self._auth = _KeyboardInteractive(self, text)  # type: ignore[assignment]
            self.send_packet(
                MSG_USERAUTH_INFO_REQUEST,
                String(b""), String(b""), String(b""), UInt32(1), String(persona.KBDINT_PROMPT), Boolean(False),
            )  # fmt: skip
            return None
        return self.answer(self._owner.login.other_method_tried(text, from_bytes(method[:64])))

    def _state_last_try(self, username: str, method: bytes, packet: SSHPacket) -> None:
        """Let a try that is about to be cut off be known with its secret."""
        if method == b"password":
            packet.get_boolean()
            self._owner.login.password_tried(username, packet.get_string(), None)
        else:
            self._owner.login.other_method_tried(username, from_bytes(method[:64]))

    def _send_banner(self) -> None:
        if self._owner.banner:
            self.send_auth_banner(self._owner.banner)

    def _try_password(self, username: str, packet: SSHPacket) -> Awaitable[None] | None:
        change = packet.get_boolean()
        password = packet.get_string()
        new = packet.get_string() if change else None
        packet.check_end()
        return self.answer(self._owner.login.password_tried(username, password, new))

    def _try_public_key(self, username: str, packet: SSHPacket) -> Awaitable[None] | None:
        signed = packet.get_boolean()
        algorithm = packet.get_string()
        blob = packet.get_string()
        message = packet.get_consumed_payload()
        signature = packet.get_string() if signed else b""
        packet.check_end()
        proven = signed and self._signature_holds(blob, message, signature)
        try:
            kind = SSHPacket(blob).get_string()
        except PacketDecodeError:
            kind = b""
        accepted = self._owner.login.public_key_tried(
            username,
            key_type=from_bytes(kind[:64]),
            key=base64.b64encode(blob).decode(),
            fingerprint="SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("="),
            fingerprint_md5="MD5:" + hashlib.md5(blob, usedforsecurity=False).digest().hex(":"),
            signed=proven,
            probe=not signed,
        )
        if accepted and not signed:
            self.send_packet(MSG_USERAUTH_PK_OK, String(algorithm), String(blob))
            return None
        return self.answer(accepted and proven)

    def _signature_holds(self, blob: bytes, message: bytes, signature: bytes) -> bool:
        try:
            return decode_ssh_public_key(blob).verify(String(self._session_id) + message, signature)
        except (KeyImportError, PacketDecodeError, ValueError, OverflowError):  # what a key's numbers may be, nobody checks
            return False

    def answer(self, accepted: bool) -> Awaitable[None] | None:
        """Tell the client the verdict; cut it after too many failures, in sshd's words."""
        self._auth = None
        if accepted:
            return self.send_userauth_success()
        if self._owner.login.too_many_failures():
            raise asyncssh.DisconnectError(DISC_PROTOCOL_ERROR, persona.TOO_MANY_FAILURES)
        methods = [name.encode() for name in persona.AUTH_METHOD_ORDER if name in self._owner.login.methods]
        self.send_packet(MSG_USERAUTH_FAILURE, NameList(methods), Boolean(False))
        return None

    # ---- global requests: recorded, and answered as sshd does

    def _process_global_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        request = SSHPacket(packet.get_remaining_payload()).get_string()
        self._owner.global_request_received(request)
        super()._process_global_request(pkttype, pktid, packet)

    def _process_keepalive_at_openssh_dot_com_global_request(self, packet: SSHPacket) -> None:
        self._report_global_response(False)

    def _process_no_more_sessions_at_openssh_dot_com_global_request(self, packet: SSHPacket) -> None:
        packet.check_end()
        self._owner.refuse_more_sessions()
        self._report_global_response(True)

    def _process_tcpip_forward_global_request(self, packet: SSHPacket) -> None:
        host = packet.get_string()
        port = packet.get_uint32()
        packet.check_end()
        bound = self._owner.forwards.listen_requested(from_bytes(host[:256]), port, privileged=self._username == "root")
        if not bound:
            self.send_debug(persona.FORWARDING_DISABLED)
        self._report_global_response(UInt32(bound) if bound and port == 0 else bool(bound))

    def _process_cancel_tcpip_forward_global_request(self, packet: SSHPacket) -> None:
        host = packet.get_string()
        port = packet.get_uint32()
        packet.check_end()
        self._report_global_response(self._owner.forwards.listen_cancelled(from_bytes(host[:256]), port))

    def _process_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: SSHPacket) -> None:
        path = packet.get_string()
        packet.check_end()
        self._report_global_response(self._owner.forwards.listen_path_requested(from_bytes(path[:4096])))

    def _process_cancel_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: SSHPacket) -> None:
        path = packet.get_string()
        packet.check_end()
        self._report_global_response(self._owner.forwards.listen_path_cancelled(from_bytes(path[:4096])))

    # ---- the end

    def _process_disconnect(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        self._owner.note_cause("client")
        super()._process_disconnect(pkttype, pktid, packet)

    # ---- channel opens

    def _process_channel_open(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        peek = SSHPacket(packet.get_remaining_payload())
        peek.get_string()
        channel, _, packet_size = (peek.get_uint32() for _ in range(3))
        if packet_size < MIN_PACKET:
            self.send_channel_open_failure(channel, asyncssh.OPEN_CONNECT_FAILED, persona.OPEN_FAILED, "")
            return
        super()._process_channel_open(pkttype, pktid, packet)

    def _process_direct_tcpip_open(self, packet: SSHPacket) -> Any:
        host = packet.get_string()
        port = packet.get_uint32()
        origin_host = packet.get_string()
        origin_port = packet.get_uint32()
        packet.check_end()
        return self._owner.forwards.connect_requested(
            self, from_bytes(host[:256]), port, from_bytes(origin_host[:256]), origin_port
        )

    def _process_direct_streamlocal_at_openssh_dot_com_open(self, packet: SSHPacket) -> Any:
        return self._owner.forwards.connect_path_requested(self, from_bytes(packet.get_string()[:4096]))

    def _process_tun_at_openssh_dot_com_open(self, packet: SSHPacket) -> Any:
        self._owner.forwards.tunnel_requested(packet.get_uint32())
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, persona.OPEN_FAILED)

    _packet_handlers = {  # noqa: RUF012  declared by asyncssh
        **BoundedConnection._packet_handlers,
        MSG_KEXINIT: _process_kexinit,
        MSG_USERAUTH_REQUEST: _process_userauth_request,
        MSG_GLOBAL_REQUEST: _process_global_request,
        MSG_CHANNEL_OPEN: _process_channel_open,
        MSG_DISCONNECT: _process_disconnect,
        MSG_NEWKEYS: BoundedConnection._process_newkeys,
    }


class _Addressed:
    """A transport whose addresses are those that a PROXY header declared."""

    def __init__(self, transport: asyncio.Transport, header: ProxyHeader) -> None:
        self._transport = transport
        self._addresses = {"peername": header.source, "sockname": header.destination}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "proxied":
            return True
        return self._addresses.get(name) or self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _KeyboardInteractive(SSHPacketHandler):
    """A keyboard-interactive exchange under way: one prompt, one answer (RFC 4256)."""

    def __init__(self, connection: Connection, username: str) -> None:
        self._connection = connection
        self._username = username

    @property
    def logger(self) -> Any:
        return self._connection.logger

    def cancel(self) -> None:
        """Nothing runs that would have to be cancelled."""

    def _process_info_response(self, _pkttype: int, _pktid: int, packet: SSHPacket) -> Awaitable[None] | None:
        count = packet.get_uint32()
        if count != 1:
            raise asyncssh.ProtocolError("wrong number of keyboard-interactive responses")
        response = packet.get_string()
        packet.check_end()
        return self._connection.answer(self._connection._owner.login.response_given(self._username, response))

    _packet_handlers = {MSG_USERAUTH_INFO_RESPONSE: _process_info_response}  # noqa: RUF012  declared by asyncssh
