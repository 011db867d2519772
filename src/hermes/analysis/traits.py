"""What a session may share with another of the same hand: its traits, and which of them tell enough. Pure.

Each trait says "whoever shares this is the same, or uses the same". What many share by chance makes no trait: an empty exec,
`uname -a`, root:123456, the fingerprint of a Go program.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import urlsplit

from hermes.analysis.guessing import is_guessable, is_weak

KINDS = {
    "key": "an SSH key that was planted, or used",
    "password": "a password that was set, or that came back",
    "payload": "the content of a file",
    "download": "the place that something was fetched from",
    "commands": "the same commands in the same order",
    "login": "an unusual credential, tried by the same program",
}
"""What sessions are joined by."""

MAX_LABEL = 300
MIN_PAYLOAD = 64
"""Bytes of a file below which it may be alike by chance."""
MIN_COMMANDS = 3
"""Different command lines that make a sequence telling, if they are not long."""
MIN_CHARACTERS = 200
"""Characters, without what differs from one run to the next, that make even one command line telling."""
MIN_EACH = 30
"""Characters of a sequence at least, however many its lines."""
MAX_PROGRAMS = 4
"""Kinds of clients (HASSH) of which a credential or a sequence is known; past that it is everybody's, and joins nobody more."""

_SYSTEMS = (
    "/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/", "/usr/share/", "/etc/ld.so.cache", "/etc/alternatives/",
    "/usr/lib/python", "/usr/lib/locale/", "/var/lib/systemd/", "/lib/", "/usr/lib/x86_64", "/usr/bin/", "/usr/sbin/",
)  # fmt: skip
"""Where package managers write: what is there is everybody's."""
_PUBLIC = (
    "github.com", "githubusercontent.com", "gitlab.com", "debian.org", "ubuntu.com", "centos.org", "fedoraproject.org",
    "pypi.org", "kernel.org", "sourceforge.net", "npmjs.org", "docker.io", "docker.com", "google.com", "microsoft.com",
    "python.org", "gnu.org", "cloudflare.com", "nodejs.org", "golang.org", "speedtest.net", "ipinfo.io", "ifconfig.me",
    "icanhazip.com", "telegram.org", "discord.com", "archive.org", "baidu.com", "aliyun.com",
)  # fmt: skip
"""Hosts that everybody fetches from: of them no place tells anything."""


class Trait(NamedTuple):
    """`value` is what is compared, `label` what a reader is shown."""

    kind: str
    value: str
    label: str


def key(fingerprint: str) -> Trait:
    return Trait("key", fingerprint, fingerprint)


def password(username: str, text: str) -> Trait | None:
    """A password that was set for a user."""
    return None if is_weak(username, text) else Trait("password", text, f"{username}:{text}"[:MAX_LABEL])


def payload(digest: str, size: int, path: str) -> Trait | None:
    """A file that was brought or made."""
    if size < MIN_PAYLOAD or path.startswith(_SYSTEMS):
        return None
    return Trait("payload", digest, f"{path or '(input)'} {digest}"[:MAX_LABEL])


def download(source: str) -> Trait | None:
    """A place that something is fetched from: host, port and path, whatever the protocol."""
    try:
        parts = urlsplit(source if "://" in source else f"//{source}")
        host, path = (parts.hostname or "").rstrip("."), parts.path.rstrip("/")
        port = f":{parts.port}" if parts.port not in (None, 80, 443, 21, 69) else ""
    except ValueError:
        return None
    if not host or "." not in host or "$" in host or not path or any(host == it or host.endswith("." + it) for it in _PUBLIC):
        return None
    return Trait("download", f"{host}{port}{path}", f"{host}{port}{path}"[:MAX_LABEL])


def commands(lines: Sequence[str]) -> Trait | None:
    """All command lines of a session, in their order, each without what differs from one run to the next."""
    telling = list(_without_repetition(it.strip() for it in lines))
    text = "\n".join(telling)
    different = {it for it in telling if len(it) > 3}
    if len(text) < MIN_EACH or (len(different) < MIN_COMMANDS and len(text) < MIN_CHARACTERS):
        return None
    return Trait("commands", sha256(text.encode()).hexdigest(), "; ".join(telling)[:MAX_LABEL])


def login(hassh: str, username: str, text: str) -> Trait | None:
    """A credential that was accepted, with the kind of the client that knew it."""
    if not hassh or is_guessable(username, text):
        return None
    return Trait("login", f"{hassh} {username}:{text}", f"{username}:{text} by {hassh}"[:MAX_LABEL])


def _without_repetition(lines: Iterable[str]) -> Iterator[str]:
    before = ""
    for line in lines:
        if line and line != before:
            yield line
        before = line
