"""Whether a password is one that anybody may try: two who used it need not know of each other. Pure."""

import re
from itertools import pairwise

MIN_LENGTH = 8
_WALKS = (
    "qwertyuiop", "asdfghjkl", "zxcvbnm", "01234567890", "qazwsxedcrfvtgbyhnujm", "1q2w3e4r5t6y7u8i9o0p", "!@#$%^&*()",
    "abcdefghijklmnopqrstuvwxyz", "q1w2e3r4t5y6u7i8o9p0", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.", "0okm9ijn8uhb7ygv6tfc5rdx",
    "123qweasdzxc", "147258369", "aszxqw",
)  # fmt: skip
"""Paths over a keyboard or an alphabet."""
_WALKS_BOTH = _WALKS + tuple(it[::-1] for it in _WALKS)
_LEET = str.maketrans("@4301!$57", "aaeoiisst")
_WORDS = re.compile(r"[a-z]{4,}")


def is_guessable(username: str, password: str) -> bool:
    """The password is short, made of the user name, a word with ornaments, or a path over the keyboard. What is left looks
    random, as what a program makes up does: of the 3000 credentials that are tried most, one in a hundred."""
    return is_weak(username, password) or _is_wordy(password) or _switches(password) < 4


def is_weak(username: str, password: str) -> bool:
    """As `is_guessable`, but without a look at the kind of its characters: for passwords that were set, not tried."""
    low = password.lower()
    if len(password) < MIN_LENGTH or len(set(low)) < 6:
        return True
    if username != "root" and len(username) >= 3 and username.lower() in low:
        return username != password or _switches(password) < 4
    return _walked(low) > 0.6 or _walked(low[::2]) > 0.6 or _walked(low[1::2]) > 0.6


def _is_wordy(password: str) -> bool:
    """Letters in the main, once digits and signs that stand for letters are read as such."""
    plain = password.lower().translate(_LEET)
    return sum(map(len, _WORDS.findall(plain))) >= 0.6 * len(plain) and bool(_WORDS.search(plain)) and not _mixed(password)


def _mixed(password: str) -> bool:
    """Lower and upper case follow each other without an order."""
    return len(re.findall(r"[a-z][A-Z]", password)) >= 2


def _switches(password: str) -> int:
    """How often the kind of character changes: digits, lower case, upper case, others."""
    kinds = [0 if it.isdigit() else 1 if it.islower() else 2 if it.isupper() else 3 for it in password]
    return sum(first != second for first, second in pairwise(kinds))


def _walked(text: str) -> float:
    """The part of a text that is paths of three steps or more, or repetitions."""
    covered = place = 0
    while place < len(text):
        length = 1
        while length < 24 and place + length < len(text) and any(text[place : place + length + 1] in it for it in _WALKS_BOTH):
            length += 1
        same = len(text[place:]) - len(text[place:].lstrip(text[place]))
        length = max(length, same)
        covered += length if length > 2 else 0
        place += length
    return covered / max(1, len(text))
