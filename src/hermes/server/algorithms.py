"""What a client's SSH_MSG_KEXINIT tells of it: its algorithm lists and their HASSH."""

import hashlib

from asyncssh.packet import PacketDecodeError, SSHPacket

from hermes.events import ClientAlgorithms, from_bytes

MAX_LIST = 4096
"""Bytes of one algorithm list that are kept."""


def client_algorithms(payload: bytes, *, connection_id: str, elapsed: float | None = None) -> ClientAlgorithms | None:
    """Return the event for a KEXINIT payload (RFC 4253, 7.1), or None when it is malformed.

    HASSH is the MD5 of `kex;encryption;mac;compression` (client to server) as the client sent them.
    Source: https://github.com/salesforce/hassh
    """
    packet = SSHPacket(payload)
    try:
        packet.get_bytes(17)  # message number, cookie
        lists = [packet.get_string() for _ in range(10)]
        follows = packet.get_remaining_payload()[:1]
    except PacketDecodeError:
        return None
    kex, host_key, encryption, encryption_back, mac, mac_back, compression, compression_back, languages, languages_back = lists
    return ClientAlgorithms(
        connection_id=connection_id,
        hassh=hashlib.md5(b";".join((kex, encryption, mac, compression)), usedforsecurity=False).hexdigest(),
        kex=_names(kex),
        host_key=_names(host_key),
        encryption=_names(encryption),
        mac=_names(mac),
        compression=_names(compression),
        languages=_names(languages),
        encryption_to_client=None if encryption_back == encryption else _names(encryption_back),
        mac_to_client=None if mac_back == mac else _names(mac_back),
        compression_to_client=None if compression_back == compression else _names(compression_back),
        languages_to_client=None if languages_back == languages else _names(languages_back),
        first_kex_packet_follows=follows not in (b"", b"\0"),
        elapsed=elapsed,
    )


def _names(joined: bytes) -> list[str]:
    return from_bytes(joined[:MAX_LIST]).split(",") if joined else []
