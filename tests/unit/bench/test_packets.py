from collections.abc import Callable

import pytest
from bench.packets import CtrHmac, Gcm, Plain, Sealer, SSHError, mpint, negotiate, read_string, string
from hypothesis import given
from hypothesis import strategies as st


def gcm() -> Sealer:
    return Gcm(bytes(16), bytes(12))


def ctr() -> Sealer:
    return CtrHmac(bytes(16), bytes(16), bytes(32), 3)


CIPHERS: list[Callable[[], Sealer]] = [Plain, gcm, ctr]


@pytest.mark.parametrize("cipher", CIPHERS)
@given(payloads=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), cut=st.integers(1, 40))
def test_packets_come_out_as_they_went_in_however_the_wire_cuts_them(
    cipher: Callable[[], Sealer], payloads: list[bytes], cut: int
) -> None:
    sender, receiver = cipher(), cipher()
    wire = b"".join(map(sender.seal, payloads))
    buffer, offset, got = bytearray(), 0, []
    for start in range(0, len(wire), cut):
        buffer += wire[start : start + cut]
        while (opened := receiver.open(buffer, offset)) is not None:
            payload, offset = opened
            got.append(payload)
    assert got == payloads
    assert offset == len(wire)


@pytest.mark.parametrize("cipher", [gcm, ctr])
def test_a_changed_packet_is_refused(cipher: Callable[[], Sealer]) -> None:
    wire = bytearray(cipher().seal(b"hello"))
    wire[-1] ^= 1
    with pytest.raises(SSHError, match="wrong"):
        cipher().open(wire, 0)


@pytest.mark.parametrize("length", [0, 1, 2**31])
def test_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(SSHError, match="packet of"):
        Plain().open(bytearray(length.to_bytes(4, "big") + bytes(32)), 0)


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(b"\x00\x00", b"\0\0\0\0"), (b"\x00\x7f", b"\0\0\0\1\x7f"), (b"\x80", b"\0\0\0\2\0\x80")],
)
def test_mpint_has_no_needless_zero_and_no_sign(number: bytes, encoded: bytes) -> None:
    assert mpint(number) == encoded


def test_strings_are_read_within_their_packet() -> None:
    assert read_string(b"x" + string(b"abc") + b"y", 1) == (b"abc", 8)
    for broken in (b"\0\0", b"\0\0\0\5abc"):
        with pytest.raises(SSHError, match="too short"):
            read_string(broken, 0)


def test_our_preference_decides() -> None:
    assert negotiate((b"a", b"b"), b"c,b,a") == b"a"
    with pytest.raises(SSHError, match="no common algorithm"):
        negotiate((b"a",), b"b")
