"""What is looked for in a file: what it is (libmagic), what it says of itself (ELF), SSH keys in it, and what YARA-X matches.

`Looker` is loaded before the scanner is forked, and works in a process that can open nothing. `understood` reads its answer,
which a file that took that process over may have written: it is checked as any other bytes of an attacker's.
"""

import os
import warnings
from typing import Annotated

import msgspec
import yara_x
from msgspec import Meta

from hermes.analysis import keys
from hermes.analysis.elf import Elf
from hermes.analysis.elf import facts as elf_facts
from hermes.analysis.scanner import MAX_ANSWER, Outcome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import magic

MAX_MATCHES = 200
"""Rules that match, at most; more are counted."""
KEY_BYTES = 2**20
"""Only files up to this size are searched for keys."""
_MATCHES_PER_PATTERN = 100
_NEEDED = 2**20
"""Bytes libmagic is shown: what its own limit is."""
Short = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=1000)]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A YARA rule that matches."""

    rule: Short
    namespace: Short
    """The file of the rule below `analysis.yara_rules`, without its suffix; `hermes` for the built-in ones."""
    tags: Annotated[list[Short], Meta(max_length=20)] = []
    description: Text = ""
    """The rule's `description`, if it has one."""
    patterns: Annotated[list[Short], Meta(max_length=20)] = []
    """Those of its strings that were found."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file's content."""

    mime: Short
    description: Text
    elf: Elf | None = None
    matches: Annotated[list[Match], Meta(max_length=MAX_MATCHES)] = []
    more: int = 0
    """Rules that match beyond those listed."""
    public_keys: Annotated[list[Annotated[str, Meta(max_length=5000)]], Meta(max_length=keys.MAX_KEYS)] = []
    """SSH public keys in it, `TYPE BASE64`."""
    looked_at: int
    """Bytes from its beginning that were looked at; less than its size where it is larger than `analysis.scan_bytes`."""


class Looker:
    """Looks at files; made where libmagic's database may be read, called where nothing may."""

    def __init__(self, rules: yara_x.Rules, *, most: int) -> None:
        """`most`: bytes looked at of a file, at most."""
        self._most = most
        self._mime = magic.Magic(mime=True)
        self._description = magic.Magic()
        self._scanner = yara_x.Scanner(rules)
        self._scanner.max_matches_per_pattern(_MATCHES_PER_PATTERN)
        self._look(b"\x7fELF warm-up: what is needed later is loaded now")

    def __call__(self, fd: int) -> bytes:
        """Look at the file and return the encoded facts, at most `MAX_ANSWER` bytes."""
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
            facts = self._look(file.read(self._most))
        answer = msgspec.msgpack.encode(facts)
        while len(answer) > MAX_ANSWER:
            half = len(facts.matches) // 2
            facts = msgspec.structs.replace(
                facts,
                matches=facts.matches[:half],
                more=facts.more + len(facts.matches) - half,
                public_keys=facts.public_keys[:5],
            )
            answer = msgspec.msgpack.encode(facts)
        return answer

    def _look(self, data: bytes) -> Facts:
        found = self._scanner.scan(data).matching_rules
        return Facts(
            mime=self._mime.from_buffer(data[:_NEEDED])[:200] if data else "inode/x-empty",
            description=self._description.from_buffer(data[:_NEEDED])[:1000] if data else "empty",
            elf=elf_facts(data),
            matches=[_match(it) for it in found[:MAX_MATCHES]],
            more=max(0, len(found) - MAX_MATCHES),
            public_keys=keys.find(data) if len(data) <= KEY_BYTES else [],
            looked_at=len(data),
        )


def _match(rule: yara_x.Rule) -> Match:
    described = next((str(value) for name, value in rule.metadata if name in ("description", "desc")), "")
    return Match(
        rule=rule.identifier[:200],
        namespace=rule.namespace[:200],
        tags=[it[:200] for it in rule.tags[:20]],
        description=described[:1000],
        patterns=[it.identifier[:200] for it in rule.patterns if it.matches][:20],
    )


def understood(outcome: Outcome) -> tuple[Facts | None, str | None]:
    """The facts, or why there are none."""
    if outcome.answer is None:
        return None, outcome.failure or "the analysis gave no answer"
    try:
        return msgspec.msgpack.decode(outcome.answer, type=Facts), None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, "the analysis gave no answer that could be read"
