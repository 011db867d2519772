"""What stands in a command line: URLs, addresses, public keys, passwords that are set, downloads. Pure, and never raising."""

import base64
import binascii
import hashlib
import ipaddress
import re
import unicodedata  # noqa: F401  urlsplit imports it when it first meets such a host, when it may be out of our reach
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar
from urllib.parse import urlsplit

from hermes.analysis.shell_types import Address, Command, Credential, Download, Facts, Key, base

T = TypeVar("T", bound=Hashable)

MAX_FACTS = 100
"""Of each kind."""
MAX_DECODED = 16 * 1024
"""Characters of text in base64 that are decoded."""
_READABLE = 0.95

_URL = re.compile(
    r"\b(?:https?|ftps?|tftp|sftp|ssh|scp|git|ldaps?|rmi|tcp|udp|stratum\+\w+|socks[45]h?)://[^\s'\"<>|;`\\)]{1,2048}", re.I
)
_IPV4 = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?(?!\.\d|\w)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:\[([0-9a-fA-F:.]{2,45})\](?::(\d{1,5}))?|((?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?:\.\d{1,3}){0,3}))(?![\w:])"
)
_NAME = re.compile(r"(?<![\w.@/-])((?:[a-zA-Z0-9][a-zA-Z0-9-]{0,62}\.){1,8}[a-zA-Z]{2,24}):(\d{1,5})(?!\w)")
_DEV = re.compile(r"/dev/(?:tcp|udp)/([\w.:-]{1,253})/(\d{1,5})")
_KEY = re.compile(
    r"(?<![\w-])(ssh-rsa|ssh-dss|ssh-ed25519|ecdsa-sha2-nistp\d{3}|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com)"
    r"\s+(AAAA[A-Za-z0-9+/]{20,8000}={0,2})(?:[ \t]+([^\s'\"\\;|&<>]{1,200}))?"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_PASSWD_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([^:\s]{1,200}):\d+:\d+:[^:]*:[^:]*:\S*")
_CRYPT = re.compile(r"\$(?:\d\w?|y|gy|sha1)\$\S+|[./0-9A-Za-z]{13}")
_VALUED = {
    "wget": frozenset("OoaietTwQPUlADBSY"),
    "curl": frozenset("oAbcdDeEFHKmPQrtTuUwxXyYzC"),
    "scp": frozenset("cDFiJloPSX"),
    "tftp": frozenset("rlbm"),
    "ftpget": frozenset("uPp"),
}
_LONG_VALUED = frozenset(
    {
        "--output-document", "--output", "--user-agent", "--header", "--data", "--user", "--password", "--tries", "--timeout",
        "--connect-timeout", "--max-time", "--proxy", "--referer", "--retry", "--request", "--directory-prefix", "--post-data",
        "--execute", "--cookie", "--interface", "--data-binary", "--data-raw", "--form", "--upload-file",
    }
)  # fmt: skip


def find(text: str, commands: Sequence[Command], decoded: Sequence[str]) -> Facts:
    """Return what stands in the text, in the words of its commands, and in what was decoded from them."""
    texts = [text, *decoded]
    texts += [word for it in commands for word in (*it.arguments, *(red.target for red in it.redirects)) if word not in text]
    urls = _once(url.rstrip(".,") for it in texts for url in _URL.findall(it))
    downloads = _once(it for command in commands for it in _downloads(command))
    addresses = _once(it for part in texts for it in _addresses(part))
    hosts = _once(
        it.lower()
        for it in (*(_host(url) for url in (*urls, *(it.source for it in downloads))), *(it.host for it in addresses))
        if it
    )
    return Facts(
        urls=urls,
        hosts=hosts,
        addresses=addresses,
        keys=_once(it for part in texts for it in _keys(part)),
        credentials=_once(_credentials(commands)),
        downloads=downloads,
        decoded=tuple(decoded[:MAX_FACTS]),
    )


def from_base64(word: str) -> str | None:
    """Return the text that a word is in base64; None when it is none, or not readable."""
    if len(word) < 16 or not _BASE64.fullmatch(word):
        return None
    compact = "".join(word.split())[:MAX_DECODED]
    compact = compact.rstrip("=")
    try:
        data = base64.b64decode(compact[: len(compact) - (len(compact) % 4 == 1)] + "=" * (-len(compact) % 4))
        text = data.decode()
    except (binascii.Error, ValueError):
        return None
    readable = sum(it.isprintable() or it in "\n\r\t" for it in text)
    return text if text.strip() and readable >= _READABLE * len(text) else None


def _once(found: Iterable[T]) -> tuple[T, ...]:
    """Each once, in its order, and at most so many."""
    seen: dict[T, None] = {}
    for it in found:
        seen[it] = None
        if len(seen) == MAX_FACTS:
            break
    return tuple(seen)


def _host(url: str) -> str:
    """The host of a URL, or of what `wget` takes for one."""
    try:
        return urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    except ValueError:
        return ""


def _addresses(text: str) -> Iterator[Address]:
    for host, port in _IPV4.findall(text):
        if (address := _address(host, port)) is not None:
            yield address
    for bracketed, port, plain in _IPV6.findall(text):
        if (address := _address(bracketed or plain, port)) is not None:
            yield address
    for host, port in (*_NAME.findall(text), *_DEV.findall(text)):
        if int(port) < 65536:
            yield Address(host.lower(), int(port))


def _address(host: str, port: str) -> Address | None:
    try:
        canonical = str(ipaddress.ip_address(host))
    except ValueError:
        return None
    if canonical == "::":
        return None
    return Address(canonical, int(port) if port and int(port) < 65536 else None)


def _keys(text: str) -> Iterator[Key]:
    for kind, encoded, comment in _KEY.findall(text):
        try:
            blob = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4))
        except (binascii.Error, ValueError):
            continue
        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        yield Key(kind, f"SHA256:{digest}", encoded, comment)


# ---- passwords


def _credentials(commands: Sequence[Command]) -> Iterator[Credential]:
    for number, command in enumerate(commands):
        name, arguments = command.plain()
        given = [it.target for it in command.redirects if it.operator.startswith("<<")]
        if command.pipeline and name in ("chpasswd", "passwd"):
            given = [_printed(it) for it in commands[:number] if it.pipeline == command.pipeline] + given
        lines = [line.strip() for it in given for line in it.splitlines() if line.strip()]
        if name == "chpasswd":
            hashed = bool({"-e", "--encrypted"} & set(arguments))
            for line in lines:
                user, colon, password = line.partition(":")
                if colon and password:
                    yield Credential(user, password, hashed)
        elif name == "passwd":
            user = next((it for it in reversed(arguments) if not it.startswith("-")), "")
            # Without pipe or redirection it reads what follows it: a script on standard input, or what was typed next.
            after = lines if given else [it.name for it in commands[number + 1 : number + 4] if it.name and not it.arguments]
            for first, second in pairwise(after):
                if first == second:
                    yield Credential(user, first)
                    break
            else:
                if "--stdin" in arguments and lines:
                    yield Credential(user, lines[0])
        elif name in ("useradd", "adduser", "usermod") and (given_as := _option(arguments, "-p", "--password")):
            yield Credential(arguments[-1], given_as, _CRYPT.fullmatch(given_as) is not None)
        elif any(base(it.target) in ("passwd", "shadow") and it.operator.startswith(">") for it in command.redirects):
            for user, password in _PASSWD_LINE.findall(_printed(command)):
                if password not in ("x", "*", "!"):
                    yield Credential(user, password, _CRYPT.fullmatch(password) is not None)


def _printed(command: Command) -> str:
    """What `echo` or `printf` prints; of other commands what they are given as text."""
    name, arguments = command.plain()
    if name == "echo":
        while arguments and re.fullmatch(r"-[neE]+", arguments[0]):
            arguments = arguments[1:]
        return " ".join(arguments).replace("\\n", "\n") + "\n"
    if name == "printf":
        text, *values = arguments or ("",)
        for value in values:
            text = text.replace("%s", value, 1) if "%s" in text else text
        return text.replace("\\n", "\n") + "\n"
    return "".join(it.target + "\n" for it in command.redirects if it.operator.startswith("<<"))


def _option(arguments: Sequence[str], short: str, long: str) -> str | None:
    for flag, value in zip(arguments, (*arguments[1:], ""), strict=False):
        if flag in (short, long):
            return value
        if flag.startswith(f"{long}="):
            return flag.partition("=")[2]
    return None


# ---- downloads


def _downloads(command: Command) -> Iterator[Download]:
    name, arguments = command.plain()
    output = next((it.target for it in command.redirects if it.operator in (">", ">>") and it.descriptor in ("", "1")), "")
    match name:
        case "wget" | "curl" | "lwp-download" | "fetch" | "aria2c" | "axel":
            places, options = _split(name, arguments)
            if name == "wget" or name in ("fetch", "aria2c"):
                target = (
                    options.get("-O") or options.get("--output-document") or options.get("-o" if name != "wget" else "") or ""
                )
            else:
                target = options.get("-o") or options.get("--output") or ""
            for place in places:
                if "." in place or "://" in place or ":" in place or "$" in place:
                    saved = "-O" in options or name != "curl"
                    own = base(place.split("?")[0]) if saved and "/" in place.split("://")[-1] else ""
                    yield Download(name, place, output if target == "-" else target or output or own)
        case "tftp":
            places, options = _split(name, arguments)
            if (file := options.get("-r")) is not None and places:
                yield Download(name, f"{places[0]}/{file}", options.get("-l") or base(file))
            elif "get" in arguments and places:
                file = arguments[arguments.index("get") + 1] if arguments[-1] != "get" else ""
                yield Download(name, f"{places[0]}/{file}", base(file))
        case "ftpget":
            places, _ = _split(name, arguments)
            if len(places) >= 2:
                yield Download(name, f"{places[0]}/{places[-1]}", places[1])
        case "scp":
            places, _ = _split(name, arguments)
            for place in places[:-1]:
                if ":" in place:
                    yield Download(name, place, places[-1])
        case _:
            pass


def _split(name: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Tell arguments from options and their values."""
    valued = _VALUED.get(name, frozenset())
    places: list[str] = []
    options: dict[str, str] = {}
    waiting = ""
    for word in arguments:
        if waiting:
            options[waiting], waiting = word, ""
        elif word.startswith("--"):
            flag, equals, value = word.partition("=")
            if equals:
                options[flag] = value
            elif flag in _LONG_VALUED:
                waiting = flag
            else:
                options[flag] = ""
        elif word.startswith("-") and len(word) > 1:
            for place, letter in enumerate(word[1:], 1):
                if letter in valued and not (name == "curl" and letter == "O"):
                    if value := word[place + 1 :]:
                        options[f"-{letter}"] = value
                    else:
                        waiting = f"-{letter}"
                    break
                options[f"-{letter}"] = ""
        else:
            places.append(word)
    return places, options
