"""Who gets in: `decide(attempt, history, …) -> Verdict`, pure; and `Memory`, what is remembered of each address."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hermes.config import AuthenticationConfig

VERDICTS_REMEMBERED = 100
"""Verdicts by chance that are remembered for one address."""

_LOGIN_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""Names that can exist on a Debian system (adduser's NAME_REGEX, 32 characters)."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One authentication try. Secrets are the client's bytes; `key` is `type base64`, as in authorized_keys."""

    method: str
    username: str
    password: bytes | None = None
    key: str | None = None


@dataclass(slots=True)
class History:
    """What one address did before: failed password tries, and the verdicts that chance gave it."""

    failures: int = 0
    verdicts: "OrderedDict[bytes, bool]" = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a try is accepted, and the rule that decided. `chance` is set when the verdict must be remembered."""

    accepted: bool
    rule: str
    chance: bytes | None = None


DENIED = Verdict(False, "denied")


def decide(attempt: Attempt, history: History, config: AuthenticationConfig, *, draw: float) -> Verdict:
    """Return the verdict on `attempt`. `draw` is a random number in [0, 1), used where chance decides."""
    if not _LOGIN_NAME.fullmatch(attempt.username):
        return DENIED
    if attempt.method == "none":
        return Verdict(True, "none") if _names(attempt.username, config.accept_none) else DENIED
    if attempt.method == "publickey":
        keys = _for_user(config.public_keys, attempt.username)
        return Verdict(True, "public-key") if any(_same_key(attempt.key, known) for known in keys) else DENIED
    if attempt.password is None:
        return DENIED
    return _decide_password(attempt, attempt.password, history, config, draw)


def _decide_password(attempt: Attempt, password: bytes, history: History, config: AuthenticationConfig, draw: float) -> Verdict:
    for known in _for_user(config.passwords, attempt.username):
        if known == "*" or known.encode() == password:
            return Verdict(True, "password")
    if config.accept_after_failures and history.failures >= config.accept_after_failures:
        return Verdict(True, "after-failures")
    if config.accept_probability:
        fingerprint = hashlib.blake2b(attempt.username.encode() + b"\0" + password, digest_size=16).digest()
        if fingerprint in history.verdicts:
            return Verdict(history.verdicts[fingerprint], "remembered")
        return Verdict(draw < config.accept_probability, "probability", chance=fingerprint)
    return DENIED


def _for_user(table: Mapping[str, Iterable[str]], username: str) -> list[str]:
    return [*table.get(username, ()), *table.get("*", ())]


def _names(username: str, names: Iterable[str]) -> bool:
    return any(name in ("*", username) for name in names)


def _same_key(offered: str | None, known: str) -> bool:
    """Compare type and base64 of two keys in authorized_keys form, whatever comment follows."""
    return offered is not None and offered.split()[:2] == known.split()[:2]


class Memory:
    """What is remembered of each address, bounded: the least recently seen address is forgotten first."""

    def __init__(self, capacity: int, on_forget: Callable[[], None] = lambda: None) -> None:
        """`on_forget` is called for each address that is forgotten."""
        self._capacity = capacity
        self._on_forget = on_forget
        self._histories: OrderedDict[str, History] = OrderedDict()

    def __len__(self) -> int:
        return len(self._histories)

    def history(self, address: str) -> History:
        """Return the address's history, new if it is not known."""
        history = self._histories.get(address)
        if history is None:
            history = self._histories[address] = History()
            if len(self._histories) > self._capacity:
                self._histories.popitem(last=False)
                self._on_forget()
        else:
            self._histories.move_to_end(address)
        return history

    def learn(self, address: str, attempt: Attempt, verdict: Verdict) -> None:
        """Remember what `decide` said."""
        history = self.history(address)
        if verdict.chance is not None:
            history.verdicts[verdict.chance] = verdict.accepted
            if len(history.verdicts) > VERDICTS_REMEMBERED:
                history.verdicts.popitem(last=False)
        if attempt.password is not None:
            history.failures = 0 if verdict.accepted else history.failures + 1
