"""The kinds of value a setting can have beyond plain text and numbers, and how each is read and written. No I/O."""

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

SIZE_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
MAX_SIZE = 2**60
MAX_SECONDS = 1e9

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|[smhdw]?)")


@dataclass(frozen=True, slots=True)
class Means:
    """What a value of this type must be, for messages and documentation: completes the sentence "must be …"."""

    text: str


def parse_size(value: object) -> object:
    """Turn `64k`, `256MiB`, `2GiB` or `1048576` into bytes; every unit is a power of 1024. Anything but text goes through."""
    if not isinstance(value, str):
        return value
    if (match := _SIZE.fullmatch(value.strip())) is None:
        raise ValueError("not a size")
    number, unit = match[1], match[2].lower()
    size = int(number) * SIZE_UNITS[unit] if "." not in number else float(number) * SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact text for a number of bytes; `parse_size` reads it back."""
    for unit in ("t", "g", "m", "k"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit.upper()}iB"
    return str(size)


def parse_duration(value: object) -> object:
    """Turn `250ms`, `30s`, `10m`, `2h`, `7d`, `1w` or `90` into seconds. Anything but text goes through."""
    if not isinstance(value, str):
        return value
    if (match := _DURATION.fullmatch(value.strip())) is None:
        raise ValueError("not a duration")
    return float(match[1]) * DURATION_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest exact text for a number of seconds; `parse_duration` reads it back."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % DURATION_UNITS[unit] == 0:
            return f"{int(seconds // DURATION_UNITS[unit])}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{Decimal(repr(seconds)):f}s"


def parse_endpoint(text: str, default_port: int) -> tuple[str, int]:
    """Read a listen address, `host`, `host:port`, `[v6]:port` or bare `v6`, into its normal form; `ValueError` if it is none."""
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::([0-9]+))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
        if not _is_ip(host, 6):
            raise ValueError("must have an IPv6 address between [ and ]")
    elif text.count(":") >= 2:
        host, port = text, None
    else:
        host, colon, port = text.partition(":")
        port = port if colon else None
    if port is not None and not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("must have a port from 1 to 65535 after the address")
    if _is_ip(host):
        host = str(ipaddress.ip_address(host))
    elif not _HOST_NAME.fullmatch(host) or len(host) > 253:
        raise ValueError("must be an IPv4 or IPv6 address or a host name, such as 0.0.0.0, '::', 192.0.2.1:2022 or '[::]:22'")
    return host, default_port if port is None else int(port)


_HOST_NAME = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


def _is_ip(text: str, version: int | None = None) -> bool:
    try:
        return version in (None, ipaddress.ip_address(text).version)
    except ValueError:
        return False


def _address(text: str) -> str:
    parse_endpoint(text, 1)
    return text


class Startups(NamedTuple):
    """sshd's `MaxStartups`: connections at which it begins to drop, percent dropped then, connections at which it drops all."""

    begin: int
    rate: int
    full: int


def parse_startups(text: str) -> Startups:
    """Read `begin:rate:full`, or one number at which all are dropped; ValueError if it is neither."""
    if (match := _STARTUPS.fullmatch(text)) is None:
        raise ValueError("must be three numbers, begin:rate:full, or one")
    begin = int(match[1])
    rate, full = (100, begin) if match[2] is None else (int(match[2]), int(match[3]))
    if not 1 <= begin <= full <= 1_000_000 or not 1 <= rate <= 100:
        raise ValueError("must have a begin of at least 1, a rate from 1 to 100 percent, and a full of at least begin")
    return Startups(begin, rate, full)


_STARTUPS = re.compile(r"([0-9]{1,7})(?::([0-9]{1,3}):([0-9]{1,7}))?", re.ASCII)


def _max_startups(text: str) -> str:
    parse_startups(text)
    return text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            "must be a network such as 192.0.2.0/24 or 2001:db8::/48, or an address, without bits behind it"
        ) from None


def parse_metrics_address(text: str) -> tuple[str, int] | str | None:
    """Read where metrics are served: (host, port) of the loopback, a unix socket's path, or None for `off`.

    Raises ValueError if it is none of these.
    """
    wrong = "must be off, a loopback address with its port, such as 127.0.0.1:9222, or a unix socket's absolute path"
    if text == "off":
        return None
    if text.startswith("/"):
        if not text.isprintable() or text.endswith("/") or len(text.encode()) > 107:
            raise ValueError("must be the path of a unix socket: printable, at most 107 bytes, no '/' at the end")
        return text
    host, port = parse_endpoint(text, 0)
    if not port or not (host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)):
        raise ValueError(wrong)
    return host, port


def _metrics_address(text: str) -> str:
    parse_metrics_address(text)
    return text


_USER_NAME = re.compile(r"[^\s:/,*\x00-\x1f\x7f-\x9f-][^\s:/,*\x00-\x1f\x7f-\x9f]{0,31}")


def _system_user(name: str) -> str:
    if not _USER_NAME.fullmatch(name) or not name.isprintable() or name.isdigit():
        raise ValueError(
            "must be the name of a user that can exist: 1 to 32 characters, no space, ':', '/', ',' or '*', "
            "no '-' in front, not a number"
        )
    if name == "root":
        raise ValueError("the front must run as an unprivileged user, such as hermes")
    return name


def _user(name: str) -> str:
    if name != "*" and (not _USER_NAME.fullmatch(name) or not name.isprintable()):
        raise ValueError(
            "must be '*' for any user, or a user name that can exist: 1 to 32 characters, no space, ':', '/', ',' or '*', "
            "no '-' in front"
        )
    return name


HARMLESS_CAPABILITIES = frozenset({
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
})  # fmt: skip
"""Capabilities whose power ends at the container's own files, processes and network namespace."""

REACHING_CAPABILITIES = frozenset({
    "AUDIT_CONTROL", "AUDIT_READ", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "IPC_LOCK", "IPC_OWNER",
    "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BROADCAST", "PERFMON", "SYSLOG",
    "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "WAKE_ALARM",
})  # fmt: skip
"""All other capabilities of Linux: each reaches the kernel, a device or another process, or lifts a limit."""


def _capability(name: str) -> str:
    if name in HARMLESS_CAPABILITIES:
        return name
    bare = name.upper().removeprefix("CAP_")
    if bare in REACHING_CAPABILITIES:
        raise ValueError("reaches outside the container; allowed are " + ", ".join(sorted(HARMLESS_CAPABILITIES)))
    if bare in HARMLESS_CAPABILITIES:
        raise ValueError(f"must be written {bare}")
    raise ValueError("is no capability of Linux; allowed are " + ", ".join(sorted(HARMLESS_CAPABILITIES)))


KEY_TYPES = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
"""Public key types, and the fields that follow the type in a key."""


def _public_key(text: str) -> str:
    kind, encoded, *_ = (*text.split(maxsplit=2), "", "")
    if kind not in KEY_TYPES:
        raise ValueError(
            "must be a public key as in a .pub file, without options: one of " + ", ".join(KEY_TYPES) + ", then base64"
        )
    try:
        rest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the part after the key type must be base64") from None
    fields = []
    while len(rest) > 4 and len(rest) >= (end := 4 + int.from_bytes(rest[:4], "big")) > 4:
        fields.append(rest[4:end])
        rest = rest[end:]
    if rest or fields[:1] != [kind.encode()] or len(fields) != 1 + KEY_TYPES[kind]:
        raise ValueError(f"the base64 part holds no {kind} key; it may have been cut")
    return text


def _path(path: Path) -> Path:
    if path == Path() or not str(path).isprintable():
        raise ValueError("must be a path of printable characters")
    return path


def _events(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be stdout, off, or a path of printable characters")
    return text


def _data_dir(path: Path) -> Path:
    if path == Path("/"):
        raise ValueError("must be a directory of Hermes' own")
    return path


def _image(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("must have no empty part, '.' or '..' between slashes")
    return name


def _docker_host(url: str) -> str:
    if url.startswith("unix:///") and len(url) > 8 and url.isprintable():
        return url
    if re.fullmatch(r"tcp://(?:\[[^\[\]]+\]|[^\[\]:]+):[0-9]+", url):
        parse_endpoint(url.removeprefix("tcp://"), 2375)
        return url
    raise ValueError("must be unix:///path or tcp://host:port")


_NUMBER_SCHEMA = {"type": "number", "minimum": 0}

Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(ge=0, le=MAX_SECONDS),
    Means("a duration in seconds, or such as 30s, 10m, 2h or 7d"),
    WithJsonSchema({"anyOf": [_NUMBER_SCHEMA, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}),
]
Bytes = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=0, le=MAX_SIZE),
    Means("a size in bytes, or such as 64k, 256MiB or 2GiB"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?[kmgtKMGT]?(i?[bB])?$"},
            ]
        }
    ),
]
Address = Annotated[str, AfterValidator(_address), Means("an address to listen on")]
User = Annotated[str, AfterValidator(_user), Means("a user name")]
SystemUser = Annotated[str, AfterValidator(_system_user), Means("a user name")]
Password = Annotated[str, StringConstraints(max_length=1024), Means("a password of at most 1024 characters"),
                     WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]  # fmt: skip
Capability = Annotated[str, AfterValidator(_capability), Means("a capability")]
PublicKey = Annotated[str, AfterValidator(_public_key), Means("an OpenSSH public key")]
FilePath = Annotated[Path, AfterValidator(_path), Means("a path")]
EventsTarget = Annotated[
    str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_events), Means("stdout, off, or a path")
]
MaxStartups = Annotated[str, AfterValidator(_max_startups), Means("begin:rate:full, such as 10:30:100, or one number"),
                        WithJsonSchema({"type": ["string", "integer"]})]  # fmt: skip
Network = Annotated[str, AfterValidator(_network), Means("an IP address or network")]
MetricsAddress = Annotated[
    str, AfterValidator(_metrics_address), Means("off, a loopback address with its port, or the path of a unix socket")
]
DataPath = Annotated[Path, AfterValidator(_path), AfterValidator(_data_dir), Means("a path")]
Image = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$", max_length=255),
    AfterValidator(_image),
    Means("the name of an image: letters, digits, '.', '_', '/', ':', '@' and '-', a letter or digit first"),
]
DockerHost = Annotated[str, AfterValidator(_docker_host), Means("unix:///path or tcp://host:port")]
