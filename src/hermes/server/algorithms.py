"""What a client's SSH_MSG_KEXINIT tells of it: its algorithm lists and their HASSH."""

import hashlib

from asyncssh.packet import PacketDecodeError, SSHPacket

from hermes.events import ClientAlgorithms, from_bytes

MAX_LIST = 4096
"""Bytes of one algorithm list that are kept."""


def client_algorithms(payload: bytes, *, connection_id: str) -> ClientAlgorithms | None:
    """Return the event for a KEXINIT payload (RFC 4253, 7.1), or None when it is malformed.

    HASSH is the MD5 of `kex;encryption;mac;compression` (client to server) as the client sent them.
    Source: https://github.com/salesforce/hassh
    """
    packet = SSHPacket(payload)
    try:
        packet.get_bytes(17)  # message number, cookie
        kex, host_key, encryption, _, mac, _, compression, _, languages, _ = (packet.get_string() for _ in range(10))
    except PacketDecodeError:
        return None
    return ClientAlgorithms(
        connection_id=connection_id,
        hassh=hashlib.md5(b";".join((kex, encryption, mac, compression)), usedforsecurity=False).hexdigest(),
        kex=_names(kex),
        host_key=_names(host_key),
        encryption=_names(encryption),
        mac=_names(mac),
        compression=_names(compression),
        languages=_names(languages),
    )


def _names(joined: bytes) -> list[str]:
    return from_bytes(joined[:MAX_LIST]).split(",") if joined else []
