"""ClientHellos and their JA4, by the examples of its specification (github.com/FoxIO-LLC/ja4, technical_details/JA4.md)."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.clienthello import MAX_HELLO, MalformedHello, parse
from hermes.server.sinks.turns import ClientHello

CIPHERS = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"
EXTENSIONS = "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"
SIGNATURES = "0403,0804,0401,0503,0805,0501,0806,0601"


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def numbers(text: str) -> bytes:
    return bytes.fromhex(text.replace(",", ""))


def hello(
    *,
    ciphers: str = CIPHERS,
    extensions: str = EXTENSIONS,
    signatures: str | None = SIGNATURES,
    versions: str | None = "0a0a,0304,0303",
    version: str = "0303",
    alpn: tuple[bytes, ...] = (b"h2", b"http/1.1"),
    name: bytes = b"www.example.com",
    record: int = 2**14,
) -> bytes:
    """A ClientHello with these lists, in records of so many bytes."""
    contents = {
        "0000": vector(2, b"\0" + vector(2, name)),
        "0010": vector(2, b"".join(vector(1, it) for it in alpn)),
        "000d": vector(2, numbers(signatures or "")),
        "002b": vector(1, numbers(versions or "")),
    }
    listed = b"".join(numbers(it) + vector(2, contents.get(it, b"")) for it in extensions.split(",") if it)
    body = numbers(version) + bytes(32) + vector(1, bytes(32)) + vector(2, numbers(ciphers)) + vector(1, b"\0")
    body += vector(2, listed) if extensions else b""
    message = b"\x01" + vector(3, body)
    pieces = [message[at : at + record] for at in range(0, len(message), record)]
    return b"".join(b"\x16\x03\x01" + vector(2, it) for it in pieces)


def read(records: bytes) -> ClientHello:
    found = parse(records)
    assert found is not None
    return found


def test_the_example_of_the_specification() -> None:
    assert read(hello()) == ClientHello("t13d1516h2_8daaf6152771_e5627efa2ab1", b"www.example.com", (b"h2", b"http/1.1"))


def test_values_that_mean_nothing_change_nothing() -> None:
    greased = hello(
        ciphers="2a2a," + CIPHERS,
        extensions="fafa," + EXTENSIONS + ",0a0a",
        signatures="1a1a," + SIGNATURES,
        versions="7a7a,0304",
    )
    assert read(greased).ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"
    assert read(hello(ciphers=CIPHERS + ",0a1a")).ja4[:10] == "t13d1616h2"  # looks like one and is none


def test_without_signature_algorithms_there_is_no_underscore() -> None:
    assert read(hello(signatures=None)).ja4 == "t13d1516h2_8daaf6152771_6d807ffa2a79"


def test_without_anything() -> None:
    assert read(hello(ciphers="", extensions="")).ja4 == "t12i000000_000000000000_000000000000"
    assert read(hello(ciphers="", extensions="0000,0010")).ja4 == "t12d0002h2_000000000000_000000000000"


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0304", "13"), ("0303", "12"), ("0302", "11"), ("0301", "10"), ("0300", "s3"), ("0002", "s2"), ("0999", "00")],
)
def test_versions(version: str, shown: str) -> None:
    assert read(hello(extensions="0017", version=version)).ja4[1:3] == shown
    assert read(hello(versions=version, version="0303")).ja4[1:3] == shown


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        (b"h2", "h2"), (b"http/1.1", "h1"), (b"", "00"), (b"x", "xx"), (b"\xab", "ab"), (b"\xab\xcd", "ad"), (b"0\xab", "3b"),
        (b"01\xab\xcd", "3d"), (b"0\xab\xcd1", "01"),
    ],
)  # fmt: skip
def test_the_ends_of_the_first_protocol(first: bytes, shown: str) -> None:
    assert read(hello(alpn=(first, b"other"))).ja4[8:10] == shown


def test_counts_have_two_digits() -> None:
    many = ",".join(f"{it:04x}" for it in range(0x2000, 0x2000 + 150))
    assert read(hello(ciphers=many, extensions=many)).ja4[:10] == "t12i999900"


def test_in_records_of_any_size_and_not_before_it_is_whole() -> None:
    records = hello(record=7)
    assert read(records) == read(hello())
    assert [it for it in range(len(records)) if parse(records[:it]) is not None] == []


@pytest.mark.parametrize(
    "records",
    [b"\x17\x03\x01\x00\x01x", b"\x16\x02\x01\x00\x01x", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff",
     b"\x16\x03\x01\x00\x04\x02\0\0\0",
     b"\x16\x03\x01\x00\x05\x01\0\0\x01x", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"],
)  # fmt: skip
def test_what_is_none(records: bytes) -> None:
    with pytest.raises(MalformedHello):
        parse(records)


def test_one_that_does_not_come_to_an_end() -> None:
    with pytest.raises(MalformedHello):
        parse(b"\x16\x03\x01\x00\x01\x01" * (MAX_HELLO // 6 + 1))


def test_a_real_client() -> None:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="api.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    found = read(outgoing.read())
    assert (found.server_name, found.alpn) == (b"api.example.com", (b"http/1.1",))
    assert found.ja4[:4] == "t13d"
    assert found.ja4[8:10] == "h1"


@given(st.binary(max_size=300), st.integers(0, 600), st.booleans())
def test_hostile_bytes_raise_only_that_they_are_none(data: bytes, at: int, inside: bool) -> None:
    records = hello()
    records = records[:at] + data + (records[at + len(data) :] if inside else b"")
    try:
        found = parse(records)
    except MalformedHello:
        return
    assert found is None or len(found.ja4) == 36


@given(st.binary(max_size=80), st.sampled_from([0x0000, 0x0010, 0x000D, 0x002B]))
def test_extensions_that_make_no_sense_count_as_empty(data: bytes, kind: int) -> None:
    extension = kind.to_bytes(2, "big") + vector(2, data)
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + vector(1, b"\0") + vector(2, extension)
    assert read(b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))).ja4[4:8] == "0101"
