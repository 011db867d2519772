"""What a command line is made of: plain data, and the words of it."""

import re

import msgspec

SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh", "ksh"})
_WRAPPERS = frozenset(
    {
        "sudo", "doas", "nohup", "busybox", "env", "exec", "command", "builtin", "setsid", "timeout", "nice", "time", "xargs",
        "chroot",
    }
)  # fmt: skip
_DURATION = re.compile(r"\d+(\.\d+)?[smhd]?")


class Redirect(msgspec.Struct, frozen=True, omit_defaults=True):
    """A redirection such as `2>>file`; of a here-document or here-string, `target` is its text."""

    operator: str
    target: str
    descriptor: str = ""


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """One simple command, its words as the shell would see them before any expansion."""

    name: str
    arguments: tuple[str, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    assignments: tuple[str, ...] = ()
    pipeline: int = 0
    """Commands of one pipeline have the same number; 0: in none."""
    nested: int = 0
    """1 for a command within the text that another was given, as in `sh -c TEXT`; 2 within that, and so on."""

    def plain(self) -> tuple[str, tuple[str, ...]]:
        """What is run and its arguments, without what only wraps it (`sudo`, `busybox`, `nohup`, …) and without its directory."""
        words = [self.name, *self.arguments]
        while len(words) > 1 and base(words[0]) in _WRAPPERS:
            rest = words[1:]
            while rest and (rest[0].startswith("-") or "=" in rest[0] or _DURATION.fullmatch(rest[0])):
                rest = rest[1:]
            if not rest:
                break
            words = rest
        return base(words[0]), tuple(words[1:])


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """An SSH public key."""

    type: str
    fingerprint: str
    """`SHA256:…`."""
    key: str
    """Base64."""
    comment: str = ""


class Credential(msgspec.Struct, frozen=True, omit_defaults=True):
    """A password that was set; `user` empty: of who runs the command. `hashed`: it is a crypt hash."""

    user: str
    password: str
    hashed: bool = False


class Download(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file fetched by `tool` (`wget`, `curl`, `tftp`, …): from where, and to which file, empty where it cannot be told."""

    tool: str
    source: str
    target: str = ""


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """An IPv4 or IPv6 address, or a name with a port."""

    host: str
    port: int | None = None


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands in a text; each once, in its order."""

    urls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Hosts of URLs, and all addresses: each in lower case."""
    addresses: tuple[Address, ...] = ()
    keys: tuple[Key, ...] = ()
    credentials: tuple[Credential, ...] = ()
    downloads: tuple[Download, ...] = ()
    decoded: tuple[str, ...] = ()
    """Text that stood there in base64."""


class Parsed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command line, taken apart."""

    text: str
    commands: tuple[Command, ...] = ()
    facts: Facts = Facts()
    clean: bool = True
    """It is valid shell as far as tree-sitter knows."""
    truncated: bool = False
    """It was longer, or more, than what is looked at."""


def base(name: str) -> str:
    """The last component of a path."""
    return name.rsplit("/", 1)[-1]
