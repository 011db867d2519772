"""asyncssh's session channel, bent so that its requests reach the `ChannelProcess` in the client's own bytes.

Like `connection`, this overrides private methods of the pinned asyncssh; `tests/unit/server/test_connection.py` checks them.
"""

import asyncio
from typing import TYPE_CHECKING

from asyncssh.constants import MSG_CHANNEL_FAILURE, MSG_CHANNEL_REQUEST
from asyncssh.packet import SSHPacket

from hermes.events import from_bytes
from hermes.server import persona
from hermes.server.backend import PTYRequest
from hermes.server.bounds import BoundedChannel

if TYPE_CHECKING:
    from hermes.server.connection import Connection
    from hermes.server.process import ChannelProcess

MAX_TERM = 64
"""Characters of a terminal type that are kept."""
MAX_SIZE = 0xFFFF
"""Largest width or height that a Linux terminal can have (struct winsize)."""


class Channel(BoundedChannel):
    """A session channel whose requests reach the `ChannelProcess` in the client's own bytes."""

    _session: "ChannelProcess"

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            connection, loop, True, False, False, 0, 0, None, "strict", persona.CHANNEL_WINDOW, persona.CHANNEL_PACKET
        )  # fmt: skip

    def _process_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        session: ChannelProcess | None = self._session  # None once the channel is closed, which asyncssh sees to
        if session is None or session.visitor.request_allowed(session):
            super()._process_request(pkttype, pktid, packet)
            return
        packet.get_string()
        if packet.get_boolean():
            self.send_packet(MSG_CHANNEL_FAILURE)

    def _process_pty_req_request(self, packet: SSHPacket) -> bool:
        term = packet.get_string()
        sizes = [min(packet.get_uint32(), MAX_SIZE) for _ in range(4)]
        modes = packet.get_string()
        packet.check_end()
        if self._session.pty is not None or self._session_started:
            return False
        width, height, pixel_width, pixel_height = sizes
        self._session.terminal_requested(
            PTYRequest(from_bytes(term)[:MAX_TERM], width, height, pixel_width, pixel_height, _terminal_modes(modes))
        )
        return True

    def _process_env_request(self, packet: SSHPacket) -> bool:
        name = packet.get_string()
        value = packet.get_string()
        packet.check_end()
        wanted = persona.accepts_env(name) and b"\0" not in value
        accepted = wanted and self._session.visitor.environment_allowed(self._session, len(name) + len(value))
        if accepted:
            self._session.env[name] = value
        self._session.env_requested(name, value, accepted=accepted)
        return accepted

    def _process_shell_request(self, packet: SSHPacket) -> bool:
        packet.check_end()
        return self._start("shell", None)

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        command = packet.get_string()
        packet.check_end()
        return self._start("exec", command)

    def _process_subsystem_request(self, packet: SSHPacket) -> bool:
        subsystem = packet.get_string()
        packet.check_end()
        return self._start("subsystem", subsystem)

    def _start(self, kind: str, command: bytes | None) -> bool:
        if self._session_started:
            return False
        self._session_started = self._session.start_requested(kind, command)
        return self._session_started

    def _process_signal_request(self, packet: SSHPacket) -> bool:
        self._session.signal_received(from_bytes(packet.get_string()[:32]))
        return True

    def _process_x11_req_request(self, packet: SSHPacket) -> bool:
        self._session.forward_requested("x11", accepted=False)
        return False

    def _process_auth_agent_req_at_openssh_dot_com_request(self, packet: SSHPacket) -> bool:  # type: ignore[override]
        self._session.forward_requested("agent", accepted=True)
        return True

    _packet_handlers = {  # noqa: RUF012  declared by asyncssh
        **BoundedChannel._packet_handlers,
        MSG_CHANNEL_REQUEST: _process_request,
    }


def _terminal_modes(encoded: bytes) -> dict[int, int]:
    """Return RFC 4254 (8) terminal modes by opcode; what is malformed ends the list, as in sshd."""
    modes: dict[int, int] = {}
    for at in range(0, len(encoded) - 4, 5):
        opcode = encoded[at]
        if opcode == 0 or opcode >= 160:
            break
        modes[opcode] = int.from_bytes(encoded[at + 1 : at + 5], "big")
    return modes
