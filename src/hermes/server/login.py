"""One connection's way in: every try decided, counted and stated."""

import random
from typing import TYPE_CHECKING

from hermes import events
from hermes.server import auth

if TYPE_CHECKING:
    from hermes.server.visitor import Visitor

MAX_SECRET = 4096
"""Bytes of one secret that are kept."""


class Login:
    """What one connection tried, and whether it is let in."""

    def __init__(self, visitor: "Visitor", memory: auth.Memory) -> None:
        self.attempts = 0
        """Tries so far."""
        self._visitor = visitor
        self._memory = memory
        self._config = visitor.front.settings.authentication
        self._max_failures = visitor.front.settings.server.max_auth_tries
        self._failures = 0

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that are offered."""
        return self._config.methods

    def too_many_failures(self) -> bool:
        """Count a failure. Return whether it was the last one allowed."""
        self._failures += 1
        if self._failures >= self._max_failures:
            self._visitor.note_cause("auth-failures")
            return True
        return False

    def password_tried(self, username: str, password: bytes, new_password: bytes | None) -> bool:
        """A password was tried (`new_password`: in a password change). Return whether it is accepted."""
        verdict = self._decide(auth.Attempt("password", username, password=password))
        new = None if new_password is None else events.from_bytes(new_password[:MAX_SECRET])
        self._tried("password", username, verdict, password=events.from_bytes(password[:MAX_SECRET]), new_password=new)
        return verdict.accepted

    def response_given(self, username: str, response: bytes) -> bool:
        """A keyboard-interactive prompt was answered. Return whether the answer is accepted."""
        verdict = self._decide(auth.Attempt("keyboard-interactive", username, password=response))
        self._tried("keyboard-interactive", username, verdict, responses=[events.from_bytes(response[:MAX_SECRET])])
        return verdict.accepted

    def public_key_tried(
        self, username: str, *, key_type: str, key: str, fingerprint: str, fingerprint_md5: str, signed: bool, probe: bool
    ) -> bool:  # fmt: skip
        """A public key was offered (`probe`), or used with a signature that holds (`signed`) or not."""
        verdict = self._decide(auth.Attempt("publickey", username, key=f"{key_type} {key}"))
        accepted = verdict.accepted and signed
        shown = verdict if accepted or not verdict.accepted else auth.Verdict(False, "public-key")
        self._tried(
            "publickey", username, shown,
            key_type=key_type, key=key[: MAX_SECRET * 4], key_signed=signed,
            key_fingerprint=fingerprint, key_fingerprint_md5=fingerprint_md5,
        )  # fmt: skip
        return verdict.accepted and (probe or signed)

    def other_method_tried(self, username: str, method: str) -> bool:
        """`none`, or a method that is not offered, was tried. Return whether it is accepted."""
        verdict = self._decide(auth.Attempt(method, username)) if method == "none" else auth.DENIED
        first = self.attempts == 0
        self._tried(method, username, verdict)
        if method == "none" and first and not verdict.accepted:
            self._failures -= 1  # sshd does not count the first try of `none` (auth2.c)
        return verdict.accepted

    def _decide(self, attempt: auth.Attempt) -> auth.Verdict:
        if attempt.method != "none" and attempt.method not in self.methods:
            return auth.DENIED
        history = self._memory.history(self._visitor.source_ip)
        verdict = auth.decide(attempt, history, self._config, draw=random.random())
        self._memory.learn(self._visitor.source_ip, attempt, verdict)
        return verdict

    def _tried(
        self,
        method: str,
        username: str,
        verdict: auth.Verdict,
        *,
        password: str | None = None,
        new_password: str | None = None,
        responses: list[str] | None = None,
        key_type: str | None = None,
        key: str | None = None,
        key_fingerprint: str | None = None,
        key_fingerprint_md5: str | None = None,
        key_signed: bool | None = None,
    ) -> None:
        self.attempts += 1
        self._visitor.say(
            events.AuthAttempt,
            method=method,
            username=username,
            accepted=verdict.accepted,
            rule=verdict.rule,
            password=password,
            new_password=new_password,
            responses=responses,
            key_type=key_type,
            key=key,
            key_fingerprint=key_fingerprint,
            key_fingerprint_md5=key_fingerprint_md5,
            key_signed=key_signed,
            elapsed=self._visitor.elapsed,
        )
