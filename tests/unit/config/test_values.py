import base64
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hermes.config import values
from hermes.config.models import DEFAULT_CAPABILITIES


def wrong(kind: Any, value: object) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return str(caught.value)


def right(kind: Any, value: object) -> object:
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("64k", 65536),
        ("64K", 65536),
        ("64KiB", 65536),
        ("256MiB", 2**28),
        ("256 MB", 2**28),
        ("2GiB", 2**31),
        ("1T", 2**40),
        ("1.5k", 1536),
        ("12B", 12),
        (" 7 ", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert right(values.Bytes, text) == size


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "1e3", "1.3", "1.0001k", "12 apples", "0x10", "1_000", "nan", "１k", "1kk", str(2**61)]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    wrong(values.Bytes, text)


@given(st.integers(min_value=0, max_value=values.MAX_SIZE))
def test_a_size_that_was_written_is_read_back(size: int) -> None:
    assert values.parse_size(values.format_size(size)) == size


def test_sizes_and_durations_are_written_in_their_largest_whole_unit() -> None:
    assert [values.format_size(it) for it in (0, 1, 1536, 65536, 2**28, 3 * 2**30)] == [
        "0",
        "1",
        "1536",
        "64KiB",
        "256MiB",
        "3GiB",
    ]
    assert [values.format_duration(it) for it in (0, 1.5, 90, 120, 7200, 604800)] == ["0s", "1.5s", "90s", "2m", "2h", "7d"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("7d", 604800),
        ("1w", 604800),
        ("5 m", 300),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert right(values.Seconds, text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 years", "10M", "1h30m", "inf", "nan", "1e3", "2e9", "40000d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    wrong(values.Seconds, text)


@given(st.floats(min_value=0, max_value=values.MAX_SECONDS, allow_nan=False))
def test_a_duration_that_was_written_is_read_back(seconds: float) -> None:
    read = values.parse_duration(values.format_duration(seconds))
    assert read == seconds


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1", ("127.0.0.1", 22)),
        ("0.0.0.0:2022", ("0.0.0.0", 2022)),
        ("::", ("::", 22)),
        ("0:0:0:0:0:0:0:1", ("::1", 22)),
        ("[::]", ("::", 22)),
        ("[2001:DB8::1]:65535", ("2001:db8::1", 65535)),
        ("fe80::1%eth0", ("fe80::1%eth0", 22)),
        ("localhost", ("localhost", 22)),
        ("ssh.example.org:1", ("ssh.example.org", 1)),
    ],
)
def test_addresses_are_read(text: str, endpoint: tuple[str, int]) -> None:
    assert values.parse_endpoint(text, 22) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":22",
        "1.2.3",
        "1.2.3.4.5",
        "999.1.1.1",
        "1.2.3.4:",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:x",
        "1.2.3.4:２２",
        "1.2.3.4: 22",
        "[1.2.3.4]:22",
        "[::",
        "::]:22",
        "[::]22",
        "[::]:",
        "::g",
        "host name",
        "-x",
        "*",
        "a,b",
        "host/24",
        "x" * 300,
        "127.0.0.1\n",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        values.parse_endpoint(text, 22)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_is_read_with_and_without_a_port(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    assert values.parse_endpoint(str(ip), 22) == (str(ip), 22)
    text = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    assert values.parse_endpoint(text, 22) == (str(ip), port)


@pytest.mark.parametrize(
    "name", ["root", "*", "Administrator", "user@example.com", "DOMAIN\\x", "22", "ünal", "a" * 32, "x-1_2.3$"]
)
def test_user_names(name: str) -> None:
    assert right(values.User, name) == name


@pytest.mark.parametrize(
    "name", ["", "-x", "a b", "a:b", "a/b", "ro*t", "**", "a\n", "\x1b[2J", "a\u202eb", "a" * 33, "a,b", "\ud800"]
)
def test_names_no_user_can_have_are_refused(name: str) -> None:
    wrong(values.User, name)


@pytest.mark.parametrize("name", ["root", "*", "0", "1000", "", "a b"])
def test_the_front_cannot_run_as_just_anyone(name: str) -> None:
    wrong(values.SystemUser, name)


def test_capabilities_are_harmless_reaching_or_none() -> None:
    assert not values.HARMLESS_CAPABILITIES & values.REACHING_CAPABILITIES
    assert set(DEFAULT_CAPABILITIES) <= values.HARMLESS_CAPABILITIES
    assert len(values.HARMLESS_CAPABILITIES | values.REACHING_CAPABILITIES) == 41, "Linux has 41 capabilities"
    for name in values.HARMLESS_CAPABILITIES:
        assert right(values.Capability, name) == name
        assert f"must be written {name}" in wrong(values.Capability, f"cap_{name.lower()}")
    for name in values.REACHING_CAPABILITIES:
        assert "reaches outside the container" in wrong(values.Capability, name)
        assert "reaches outside the container" in wrong(values.Capability, f"CAP_{name}")
    for name in ("ALL", "", "SYS_ROOT"):
        assert "is no capability" in wrong(values.Capability, name)


@pytest.mark.parametrize(
    "name",
    [
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_PTRACE",
        "BPF",
        "PERFMON",
        "NET_ADMIN",
        "SYS_BOOT",
        "SYS_TIME",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "MKNOD",
        "SYSLOG",
        "CHECKPOINT_RESTORE",
    ],
)
def test_no_capability_that_reaches_outside_is_harmless(name: str) -> None:
    assert name in values.REACHING_CAPABILITIES


def public_key(kind: str, fields: int | None = None) -> str:
    parts = [kind.encode(), *[b"\x01" * 32] * (values.KEY_TYPES[kind] if fields is None else fields)]
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"{kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize("kind", values.KEY_TYPES)
def test_public_keys(kind: str) -> None:
    assert right(values.PublicKey, public_key(kind)) == public_key(kind)
    assert right(values.PublicKey, public_key(kind) + " a comment") == public_key(kind) + " a comment"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        "AAAAC3Nz",
        "ssh-dss AAAA",
        "no-pty " + public_key("ssh-rsa"),
        public_key("ssh-rsa").replace("ssh-rsa", "ssh-ed25519"),
        public_key("ssh-rsa")[:-8],
        public_key("ssh-rsa", fields=1),
        public_key("ssh-rsa", fields=3),
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    wrong(values.PublicKey, text)


@pytest.mark.parametrize("path", ["", ".", "a\0b", "a\nb", "a\udcff", "\x1b[2J"])
def test_what_is_no_path_is_refused(path: str) -> None:
    wrong(values.FilePath, path)


@pytest.mark.parametrize("target", ["", "a\0b", "a\x1b", "\udcff", "x" * 5000])
def test_events_go_to_no_strange_place(target: str) -> None:
    wrong(values.EventsTarget, target)


def test_data_cannot_lie_in_the_root_of_the_machine() -> None:
    assert "of Hermes' own" in wrong(values.DataPath, "/")


@pytest.mark.parametrize("name", ["debian-12", "ubuntu:24.04", "registry.example/a/b@sha256:00ff"])
def test_images(name: str) -> None:
    assert right(values.Image, name) == name


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "a//b", "a/", "-x", "a b", "a\n"])
def test_what_is_no_image_is_refused(name: str) -> None:
    wrong(values.Image, name)


@pytest.mark.parametrize(
    "url", ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://docker.lan:2376"]
)
def test_docker_hosts(url: str) -> None:
    assert right(values.DockerHost, url) == url


@pytest.mark.parametrize(
    "url",
    ["", "unix://", "unix:///", "unix://run/x", "tcp://x", "tcp://:1", "tcp://x:0", "tcp://::1:2", "http://x:1", "unix:///a\x1b"],
)
def test_what_is_no_docker_host_is_refused(url: str) -> None:
    wrong(values.DockerHost, url)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("off", None),
        ("127.0.0.1:9222", ("127.0.0.1", 9222)),
        ("127.8.0.1:1", ("127.8.0.1", 1)),
        ("[::1]:9222", ("::1", 9222)),
        ("localhost:80", ("localhost", 80)),
        ("/run/hermes/metrics.sock", "/run/hermes/metrics.sock"),
    ],
)
def test_where_metrics_are_served(text: str, where: object) -> None:
    assert right(values.MetricsAddress, text) == text
    assert values.parse_metrics_address(text) == where


@pytest.mark.parametrize(
    "text", ["", "on", "127.0.0.1", "0.0.0.0:9222", "[::]:9222", "192.0.2.1:9222", "example.com:80", "127.0.0.1:0", "x.sock", "/",
             "/a\0b", "/run/", "/" + "x" * 107]
)  # fmt: skip
def test_metrics_are_not_served_to_everybody(text: str) -> None:
    wrong(values.MetricsAddress, text)
