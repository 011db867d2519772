"""Command lines as attackers typed them: `parse(text) -> Parsed` takes one apart, `normalise(parsed)` tells what is alike.

Pure, bounded, and never raising on any text.
"""

import re
from functools import lru_cache

from hermes.analysis import shell_facts
from hermes.analysis.shell_tree import Reading
from hermes.analysis.shell_types import Address, Command, Credential, Download, Facts, Key, Parsed, Redirect, base

__all__ = ["Address", "Command", "Credential", "Download", "Facts", "Key", "Parsed", "Redirect", "normalise", "parse"]

MAX_TEXT = 64 * 1024
"""Characters of a text that are looked at; the rest is left out, and `truncated` says so."""
MAX_NORMAL = 2000

_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,15}://[^\s'\"<>|;)`]+")
_KEY = re.compile(r"\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+)\s+AAAA[A-Za-z0-9+/=]+(?:\s+\S+)?")
_IPV4 = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b")
_IPV6 = re.compile(r"\[?(?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}(?![\w:])\]?(?::\d{1,5})?")
_ENCODED = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{24,}={0,2}|(?:\\+x[0-9a-fA-F]{2}){4,}|(?:\\+[0-7]{3}){4,}")
_HEX = re.compile(r"\b(?:0x)?(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b")
_RANDOM = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{6,}(?![A-Za-z0-9])")
_NUMBER = re.compile(r"\d+")
_KNOWN = frozenset(
    {"x86", "i686", "i386", "armv7l", "aarch64", "sha256sum", "sha512sum", "sha1sum", "base64", "python2", "python3", "mips64"}
)


def parse(text: str) -> Parsed:
    """Take a text of any length and content apart. The same text gives the same result, which may be shared."""
    cut = text[:MAX_TEXT]
    return _parse(cut, len(cut) < len(text))


@lru_cache(maxsize=2048)
def _parse(text: str, truncated: bool) -> Parsed:
    reading = Reading()
    reading.read(text)
    commands = tuple(reading.commands)
    return Parsed(
        text=text, commands=commands, facts=shell_facts.find(text, commands, reading.decoded), clean=reading.clean,
        truncated=truncated or reading.truncated,
    )  # fmt: skip


def normalise(parsed: Parsed) -> str:
    """What the command line does, without what differs from one attacker or run to the next: numbers, addresses, URLs, keys,
    encoded and random text, and passwords are replaced by what they are. At most `MAX_NORMAL` characters."""
    secrets = [re.escape(it.password) for it in parsed.facts.credentials if len(it.password) >= 3]
    secret = re.compile("|".join(sorted(secrets, key=len, reverse=True))) if secrets else None
    if not parsed.commands:
        return _alike(" ".join(parsed.text.split()), secret)[:MAX_NORMAL]
    lines: list[str] = []
    size = 0
    before: Command | None = None
    for command in parsed.commands:
        if command.nested and parsed.commands[0].nested == 0:
            continue  # it stands in the words of the one that runs it
        line = _line(command, secret)
        joint = " | " if before is not None and command.pipeline and command.pipeline == before.pipeline else "; "
        lines += [joint, line] if lines else [line]
        size += len(joint) + len(line)
        before = command
        if size > MAX_NORMAL:
            break
    return "".join(lines)[:MAX_NORMAL]


def _line(command: Command, secret: re.Pattern[str] | None) -> str:
    words = [*(it.split("=", 1)[0] + "=" + _alike(it.partition("=")[2], secret) for it in command.assignments)]
    if command.name:
        words.append(_alike(command.name, secret))
    if base(command.name) == "busybox" and len(command.arguments) == 1 and command.arguments[0].isupper():
        words.append("RANDOM")  # no applet has such a name: who asks wants to see how that fails
    else:
        words += [_alike(it, secret) for it in command.arguments]
    words += [f"{it.descriptor}{it.operator}{_alike(it.target, secret)}" for it in command.redirects]
    return " ".join(words)


def _alike(text: str, secret: re.Pattern[str] | None) -> str:
    text = text[: 4 * MAX_NORMAL]
    if secret is not None:
        text = secret.sub("PASSWORD", text)
    text = _KEY.sub("KEY", text)
    text = _URL.sub("URL", text)
    text = _IPV4.sub("ADDRESS", text)
    text = _IPV6.sub("ADDRESS", text)
    text = _ENCODED.sub("ENCODED", text)
    text = _HEX.sub("RANDOM", text)
    text = _RANDOM.sub(lambda it: it[0] if it[0].lower() in _KNOWN else "RANDOM", text)
    return " ".join(_NUMBER.sub("N", text).split())
