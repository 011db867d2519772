"""What is searched for: the words of a query as people type them, made fit for FTS5. Pure."""

import re
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

import msgspec

_PIECE = re.compile(r'"([^"]*)"?(\*?)|(\S+)')


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched for; all that is given must hold. Times are aware."""

    text: str = ""
    syntax: Literal["words", "substring", "fts5"] = "words"
    """How `text` is meant: words and "phrases", a piece of text wherever it stands, or an expression of FTS5."""
    since: datetime | None = None
    until: datetime | None = None
    network: IPv4Network | IPv6Network | None = None
    """The connection's address is in it."""
    country: str | None = None
    hassh: str | None = None
    user: str | None = None
    """Who logged in, or was tried last."""
    hash: str | None = None
    """SHA-256, SHA-1 or MD5 of a file."""
    host: str | None = None
    """A host or address that stands in the command."""
    event: str | None = None
    """Its name, or the beginning of several with a `*`: `process.*`."""
    session: str | None = None
    limit: int = 50


class Terms(msgspec.Struct, frozen=True):
    """A query's words: an FTS5 expression that a text has to match, and pieces of text without any word that it has to hold."""

    match: str
    literals: tuple[str, ...]


def terms(text: str) -> Terms:
    """Read words as people type them: all of them must be there; `"a phrase"` in this order; `word*` as a beginning.

    A word with signs in it (`/bin/busybox`, `-rf`) is the phrase of what stands between the signs, which FTS5 does not keep.
    Signs alone (`&&`) must stand there as they are.
    """
    matches: list[str] = []
    literals: list[str] = []
    for phrase, star, word in _PIECE.findall(text.replace("\0", " ")):
        if word:
            phrase, star = (word[:-1], "*") if len(word) > 1 and word.endswith("*") else (word, "")
        if any(it.isalnum() for it in phrase):
            escaped = phrase.replace('"', '""')
            matches.append(f'"{escaped}"' + (" *" if star and phrase[-1:].isalnum() else ""))
        elif phrase.strip():
            literals.append(phrase.strip())
    return Terms(" ".join(matches), tuple(literals))


def like(text: str) -> str:
    """The pattern of SQL's LIKE, with `\\` as its escape, for text that holds this."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"
