"""Which passwords anybody may try."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.analysis.guessing import is_guessable, is_weak


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("root", ""), ("root", "123456"), ("root", "1234567890"), ("root", "password"), ("root", "P@ssw0rd123"),
        ("root", "1qaz2wsx3edc"), ("root", "!QAZ2wsx"), ("root", "1q2w3e4r5t"), ("admin", "admin@2023"), ("sol", "1234sol"),
        ("root", "aaaaaaaaaaaa"), ("oracle", "Oracle#2024"), ("root", "t0talc0ntr0l4!"), ("root", "1a2b3c4d5e"),
        ("root", "qwerty123"), ("root", "Zxcvbnm,./"),
        ("ubuntu", "ubuntu123456"), ("root", "abc123456789"), ("root", "Huawei@123"), ("root", "Passw0rd!"),
    ],
)  # fmt: skip
def test_what_lists_have_is_guessable(username: str, password: str) -> None:
    assert is_guessable(username, password)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("345gs5662d34", "345gs5662d34"), ("root", "3245gs5662d34"), ("root", "RWkBNMP8e9u6"), ("root", "XBWk2DfaVCtdANvbugnv"),
        ("root", "5nWt3P-fF4WosQm5O"), ("root", "J5cmmu=Kyf0-br8CsW"),
    ],
)  # fmt: skip
def test_what_a_program_made_up_is_not(username: str, password: str) -> None:
    assert not is_guessable(username, password)
    assert not is_weak(username, password)


def test_a_password_that_was_set_need_not_look_random() -> None:
    assert not is_weak("root", "hZGpqxYLSHCF")
    assert not is_weak("root", "IMGjraefnhet")
    assert is_weak("root", "123456789")
    assert is_weak("admin", "admin1234")


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_judged(username: str, password: str) -> None:
    assert is_guessable(username, password) or not is_weak(username, password)


@given(st.text(alphabet=string.digits, max_size=40))
def test_numbers_are_guessable(password: str) -> None:
    assert is_guessable("root", password)
