"""HASSH and algorithm lists from a KEXINIT."""

import hashlib

import pytest
from asyncssh.packet import NameList
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.algorithms import client_algorithms


def kexinit(*lists: str) -> bytes:
    return b"\x14" + b"c" * 16 + b"".join(NameList([item.encode()] if item else []) for item in lists) + b"\0" * 5


def test_hassh_is_the_md5_of_the_four_lists_as_sent() -> None:
    payload = kexinit("kex-a,kex-b", "host", "enc-1,enc-2", "other", "mac", "other", "none", "other", "", "")
    event = client_algorithms(payload, connection_id="c")
    assert event is not None
    assert event.hassh == hashlib.md5(b"kex-a,kex-b;enc-1,enc-2;mac;none", usedforsecurity=False).hexdigest()
    assert (event.kex, event.encryption, event.languages) == (["kex-a", "kex-b"], ["enc-1", "enc-2"], [])


def test_a_known_client() -> None:
    """libssh 0.9.6, by its algorithm lists as published with its HASSH."""
    kex = (
        "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,ecdh-sha2-nistp521,"
        "diffie-hellman-group18-sha512,diffie-hellman-group16-sha512,diffie-hellman-group-exchange-sha256,"
        "diffie-hellman-group14-sha256,diffie-hellman-group14-sha1,diffie-hellman-group1-sha1,ext-info-c"
    )
    encryption = (
        "aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr,aes256-cbc,aes192-cbc,aes128-cbc,3des-cbc"
    )
    mac = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha1-etm@openssh.com,"
    mac += "hmac-sha2-256,hmac-sha2-512,hmac-sha1"
    event = client_algorithms(kexinit(kex, "h", encryption, encryption, mac, mac, "none", "none", "", ""), connection_id="c")
    assert event is not None
    assert event.hassh == "f555226df1963d1d3c09daf865abdc9a"


def test_lists_to_the_client_are_there_where_they_differ() -> None:
    event = client_algorithms(kexinit("k", "h", "e", "e", "m", "m", "c", "c", "", ""), connection_id="c", elapsed=0.25)
    assert event is not None
    assert (event.encryption_to_client, event.mac_to_client) == (None, None)
    assert (event.compression_to_client, event.languages_to_client, event.elapsed) == (None, None, 0.25)
    event = client_algorithms(kexinit("k", "h", "e", "f,g", "m", "n", "c", "d", "", "en"), connection_id="c")
    assert event is not None
    assert (event.encryption, event.encryption_to_client) == (["e"], ["f", "g"])
    assert (event.mac_to_client, event.compression_to_client, event.languages_to_client) == (["n"], ["d"], ["en"])
    assert event.hassh == hashlib.md5(b"k;e;m;c", usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(("last", "follows"), [(b"\0" * 5, False), (b"\1" + b"\0" * 4, True), (b"", False)])
def test_a_guessed_key_exchange_is_noted(last: bytes, follows: bool) -> None:
    event = client_algorithms(kexinit(*"abcdefghij")[:-5] + last, connection_id="c")
    assert event is not None
    assert event.first_kex_packet_follows is follows


@given(st.binary(max_size=200))
def test_hostile_payloads_raise_nothing(payload: bytes) -> None:
    client_algorithms(payload, connection_id="c")
