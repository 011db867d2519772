"""How commands put times, sizes and attackers' text into words."""

import re
from datetime import UTC, datetime, timedelta

from hermes.cli.console import USAGE, fail, visible

SHOWN_CHARACTERS = 400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def when(text: str, now: datetime, option: str = "--since") -> datetime:
    """Return the moment meant by `90m` (ago), a date, or a date and time; UTC where it names no zone."""
    try:
        if match := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
            return now - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        fail(f"{option} {text}: give a time span such as 90m or 7d, or a date such as 2026-01-31 or 2026-01-31T12:00Z", USAGE)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def short(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Return text an attacker sent, safe to show and of bounded length."""
    return visible(text[:characters]) + ("…" if len(text) > characters else "")


def span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(count: int) -> str:
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
