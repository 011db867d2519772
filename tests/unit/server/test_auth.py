"""decide() is pure; Memory is bounded."""

import pytest

from hermes.config import AuthenticationConfig
from hermes.server.auth import VERDICTS_REMEMBERED, Attempt, History, Memory, decide


def password(username: str, secret: bytes, method: str = "password") -> Attempt:
    return Attempt(method, username, password=secret)


@pytest.mark.parametrize(
    ("username", "secret", "accepted"),
    [
        ("root", b"root", True),
        ("root", b"toor", True),
        ("root", b"Root", False),
        ("root", b"", False),
        ("admin", b"anything at all", True),
        ("guest", b"letmein", True),
        ("guest", b"root", False),
        ("guest", "gästebuch".encode(), True),
        ("guest", b"g\xff", False),
    ],
)
def test_passwords(username: str, secret: bytes, accepted: bool) -> None:
    config = AuthenticationConfig(passwords={"root": ("root", "toor"), "admin": ("*",), "*": ("letmein", "gästebuch")})
    verdict = decide(password(username, secret), History(), config, draw=0.0)
    assert verdict.accepted is accepted
    assert verdict.rule == ("password" if accepted else "denied")


@pytest.mark.parametrize("username", ["", "Root", "a b", "x" * 33, "../etc", "-x", "root\n", "é", "a:b", "\\xff"])
def test_names_that_cannot_exist_never_get_in(username: str) -> None:
    config = AuthenticationConfig(passwords={"*": ("*",)}, accept_none=("*",))
    assert not decide(password(username, b"x"), History(), config, draw=0.0).accepted
    assert not decide(Attempt("none", username), History(), config, draw=0.0).accepted


def test_keyboard_interactive_answers_are_passwords() -> None:
    verdict = decide(password("root", b"root", "keyboard-interactive"), History(), AuthenticationConfig(), draw=0.0)
    assert verdict.accepted


def test_none_only_for_those_named() -> None:
    config = AuthenticationConfig(accept_none=("guest",))
    assert decide(Attempt("none", "guest"), History(), config, draw=0.0).rule == "none"
    assert not decide(Attempt("none", "root"), History(), config, draw=0.0).accepted


def test_public_keys_only_if_configured_whatever_their_comment() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMm0vjv5Y8Z0N3b7Tg0bCjT0o8m9m3uL6L9hTt0bA4yV"
    config = AuthenticationConfig(public_keys={"root": (key + " me@home",)})
    assert decide(Attempt("publickey", "root", key=key), History(), config, draw=0.0).rule == "public-key"
    assert not decide(Attempt("publickey", "admin", key=key), History(), config, draw=0.0).accepted
    assert not decide(Attempt("publickey", "root", key=key[:-1] + "A"), History(), config, draw=0.0).accepted
    assert not decide(Attempt("publickey", "root", key=key), History(), AuthenticationConfig(), draw=0.0).accepted


def test_accepted_after_failures_from_the_same_address_then_counted_anew() -> None:
    config = AuthenticationConfig(passwords={}, accept_after_failures=2)
    memory = Memory(10)
    rules = []
    for _ in range(4):
        attempt = password("root", b"x")
        verdict = decide(attempt, memory.history("192.0.2.1"), config, draw=0.0)
        memory.learn("192.0.2.1", attempt, verdict)
        rules.append(verdict.rule)
    assert rules == ["denied", "denied", "after-failures", "denied"]
    assert not decide(password("root", b"x"), memory.history("192.0.2.2"), config, draw=0.0).accepted


def test_chance_is_remembered_per_address_and_try() -> None:
    config = AuthenticationConfig(passwords={}, accept_probability=0.5)
    memory = Memory(10)
    attempt = password("root", b"x")
    first = decide(attempt, memory.history("192.0.2.1"), config, draw=0.4)
    memory.learn("192.0.2.1", attempt, first)
    assert (first.accepted, first.rule) == (True, "probability")
    again = decide(attempt, memory.history("192.0.2.1"), config, draw=0.9)
    assert (again.accepted, again.rule) == (True, "remembered")
    assert not decide(password("root", b"y"), memory.history("192.0.2.1"), config, draw=0.9).accepted
    assert not decide(attempt, memory.history("192.0.2.2"), config, draw=0.9).accepted


def test_user_and_password_do_not_run_into_each_other() -> None:
    config = AuthenticationConfig(passwords={}, accept_probability=0.5)
    one = decide(password("ab", b"c"), History(), config, draw=0.0)
    other = decide(password("a", b"bc"), History(), config, draw=0.0)
    assert one.chance != other.chance


def test_memory_forgets_the_least_recently_seen_address() -> None:
    memory = Memory(2)
    memory.history("a").failures = 1
    memory.history("b").failures = 2
    memory.history("a")
    memory.history("c")
    assert len(memory) == 2
    assert memory.history("a").failures == 1
    assert memory.history("b").failures == 0


def test_verdicts_of_one_address_are_bounded() -> None:
    config = AuthenticationConfig(passwords={}, accept_probability=0.5)
    memory = Memory(1)
    for number in range(VERDICTS_REMEMBERED * 2):
        attempt = password("root", str(number).encode())
        memory.learn("a", attempt, decide(attempt, memory.history("a"), config, draw=0.0))
    assert len(memory.history("a").verdicts) == VERDICTS_REMEMBERED
