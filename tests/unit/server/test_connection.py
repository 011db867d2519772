"""What we override in asyncssh is still there: a new version of it must be looked at before it is pinned."""

import asyncssh
import pytest
from asyncssh.channel import SSHForwardChannel, SSHServerChannel
from asyncssh.connection import SSHServerConnection
from asyncssh.misc import ProtocolError
from asyncssh.packet import SSHPacketHandler
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.bounds import BoundedChannel, BoundedConnection
from hermes.server.channel import Channel, _terminal_modes
from hermes.server.connection import Connection
from hermes.server.sink import SinkChannel

OVERRIDDEN = {
    Connection: (
        "connection_made", "data_received", "connection_lost", "reload_config", "_send_version", "_recv_version",
        "_process_disconnect", "_process_channel_open",
        "_process_kexinit", "_process_userauth_request", "_process_global_request",
        "_process_keepalive_at_openssh_dot_com_global_request", "_process_tcpip_forward_global_request",
        "_process_cancel_tcpip_forward_global_request", "_process_streamlocal_forward_at_openssh_dot_com_global_request",
        "_process_cancel_streamlocal_forward_at_openssh_dot_com_global_request", "_process_direct_tcpip_open",
        "_process_direct_streamlocal_at_openssh_dot_com_open", "_process_tun_at_openssh_dot_com_open", "_packet_handlers",
    ),
    BoundedConnection: (
        "connection_made", "data_received", "pause_writing", "resume_writing", "_send", "send_packet", "_send_deferred_packets",
        "_choose_alg", "_process_newkeys", "_force_close", "_cleanup", "internal_error",
    ),
    BoundedChannel: ("_accept_data",),
    SinkChannel: (),
    Channel: (
        "_process_request", "_packet_handlers",
        "_process_pty_req_request", "_process_env_request", "_process_shell_request", "_process_exec_request",
        "_process_subsystem_request", "_process_signal_request", "_process_x11_req_request",
        "_process_auth_agent_req_at_openssh_dot_com_request",
    ),
}  # fmt: skip
PAIRS = (
    (Connection, SSHServerConnection), (BoundedConnection, SSHServerConnection),
    (Channel, SSHServerChannel), (BoundedChannel, SSHServerChannel), (SinkChannel, SSHForwardChannel),
)  # fmt: skip
USED = (
    "_inpbuf",
    "_send",
    "_transport",
    "_deferred_packets",
    "_compressor",
    "_decompressor",
    "_next_decompressor",
    "_auth",
    "_auth_complete",
    "_auth_final",
    "_username",
    "_session_id",
)


def test_every_override_overrides_something() -> None:
    for ours, base in PAIRS:
        for name in OVERRIDDEN[ours]:
            assert name in vars(ours), name
            assert getattr(base, name) is not getattr(ours, name), name


def test_everything_private_we_define_is_listed_or_ours_alone() -> None:
    for ours, base in PAIRS:
        shared = {name for name in vars(ours) if not name.startswith("__") and hasattr(base, name)}
        assert shared - set(OVERRIDDEN[ours]) <= {"_abc_impl", "_is_protocol"}


@pytest.mark.asyncio
async def test_state_we_use_is_there() -> None:
    import asyncio

    connection = SSHServerConnection(asyncio.get_running_loop(), asyncssh.SSHServerConnectionOptions(login_timeout=0))
    assert [name for name in USED if not hasattr(connection, name)] == []
    assert issubclass(ProtocolError, asyncssh.DisconnectError)
    assert hasattr(SSHPacketHandler, "process_packet")


def test_terminal_modes() -> None:
    assert _terminal_modes(b"\x01\x00\x00\x00\x03\x35\x00\x00\x00\x01\x00") == {1: 3, 53: 1}
    assert _terminal_modes(b"\x01\x00\x00\x00\x03\xff\x00\x00\x00\x01") == {1: 3}
    assert _terminal_modes(b"\x01\x00\x00") == {}


@given(st.binary(max_size=100))
def test_hostile_terminal_modes_raise_nothing(encoded: bytes) -> None:
    for opcode, value in _terminal_modes(encoded).items():
        assert 0 < opcode < 160
        assert 0 <= value < 2**32
