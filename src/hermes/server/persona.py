"""Which OpenSSH we are: Debian 12's sshd 9.2p1 with its default configuration.

The lists are what `sshd -T` and `ssh -vv` show on Debian 12, less what asyncssh cannot speak
(`sntrup761x25519-sha512@openssh.com` is offered where liboqs is present).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import asyncssh

KEX_ALGORITHMS = (
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
)
ENCRYPTION_ALGORITHMS = (
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
)
MAC_ALGORITHMS = (
    "umac-64-etm@openssh.com",
    "umac-128-etm@openssh.com",
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha1-etm@openssh.com",
    "umac-64@openssh.com",
    "umac-128@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "hmac-sha1",
)
COMPRESSION_ALGORITHMS = ("none", "zlib@openssh.com")

AUTH_METHOD_ORDER = ("publickey", "password", "keyboard-interactive")
"""The order in which sshd lists the methods that can continue (auth2.c)."""

CHANNEL_WINDOW = 2 * 1024 * 1024
CHANNEL_PACKET = 32 * 1024
"""sshd's CHAN_SES_WINDOW_DEFAULT and CHAN_SES_PACKET_DEFAULT (channels.h), in bytes."""

SUBSYSTEMS = {b"sftp": b"/usr/lib/openssh/sftp-server"}
"""Debian's sshd_config: `Subsystem sftp /usr/lib/openssh/sftp-server`; sshd runs it by the user's shell."""

FORWARD_WINDOW = 2 * 1024 * 1024
FORWARD_PACKET = 32 * 1024
"""sshd's CHAN_TCP_WINDOW_DEFAULT and CHAN_TCP_PACKET_DEFAULT (channels.h), in bytes."""

OPEN_FAILED = "open failed"
CONNECT_FAILED = "Connection refused"
FORWARDING_DISABLED = "Server has disabled port forwarding."
"""What sshd says in an SSH_MSG_DEBUG when it refuses to listen."""
RESERVED_PORTS = range(1, 1024)
"""Ports that only root may listen on (IPPORT_RESERVED)."""
INVALID_IDENTIFICATION = b"Invalid SSH identification string.\r\n"
MAJOR_VERSIONS_DIFFER = b"Protocol major versions differ.\r\n"
SESSIONS_DISABLED = "Possible attack: attempt to open a session after additional sessions disabled"
TOO_MANY_FAILURES = "Too many authentication failures"
KBDINT_PROMPT = "Password: "

_ACCEPT_ENV = re.compile(rb"LANG|LC_[A-Za-z0-9_]*")
"""Debian's sshd_config: `AcceptEnv LANG LC_*`."""


def accepts_env(name: bytes) -> bool:
    """Return whether a client may set this environment variable."""
    return _ACCEPT_ENV.fullmatch(name) is not None


@lru_cache(maxsize=8)
def overload_notice(version: str) -> bytes:
    """Return what an overloaded sshd of this version says instead of its identification string before it closes.

    OpenSSH 8.2 to 9.7 says so; 9.8, which has penalties too, words it otherwise; older ones, and others, just close.
    """
    match = _OPENSSH.match(version)
    if match is None or (release := (int(match[1]), int(match[2]))) < (8, 2):
        return b""
    return b"Exceeded MaxStartups\r\n" if release < (9, 8) else b"Not allowed at this time\r\n"


_OPENSSH = re.compile(r"OpenSSH_([0-9]{1,3})\.([0-9]{1,3})")


def identification_error(line: bytes) -> bytes | None:
    """Return what sshd answers to a client's identification string that it does not accept; None when it does."""
    if not line.startswith(b"SSH-") or not line.isascii():
        return INVALID_IDENTIFICATION
    if not line.startswith((b"SSH-2.0-", b"SSH-1.99-")):
        return MAJOR_VERSIONS_DIFFER
    return None


@dataclass(frozen=True, slots=True)
class Algorithms:
    """Algorithm lists in the form asyncssh takes them."""

    kex: tuple[str, ...]
    encryption: tuple[str, ...]
    mac: tuple[str, ...]
    compression: tuple[str, ...]


def algorithms() -> Algorithms:
    """Return the persona's lists, less what the installed asyncssh cannot do."""
    return Algorithms(
        kex=_available(KEX_ALGORITHMS, "kex_algs"),
        encryption=_available(ENCRYPTION_ALGORITHMS, "encryption_algs"),
        mac=_available(MAC_ALGORITHMS, "mac_algs"),
        compression=_available(COMPRESSION_ALGORITHMS, "compression_algs"),
    )


def _available(names: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return those of `names` that asyncssh accepts for `option`."""

    def known(name: str) -> bool:
        try:
            asyncssh.SSHServerConnectionOptions(**{option: [name]})
        except ValueError:
            return False
        return True

    return tuple(name for name in names if known(name))
