"""Sets of ids as ranges: `1-30,45,50-52`. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Self


class Ranges:
    """A set of positive numbers; what is next to each other is one range. Never changed."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        """`pairs`: first and last number of each range, in any order, overlapping or not."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(pairs):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Self:
        """Return the set of these numbers."""
        return cls((one, one) for one in numbers)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` of a set was made of; parts that are no ranges are left out."""
        return cls(pair for part in text.split(",") if (pair := _pair(part)) is not None)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __or__(self, other: "Ranges") -> "Ranges":
        return Ranges([*self, *other])

    def __and__(self, other: "Ranges") -> "Ranges":
        found = []
        for first, last in self:
            for place in range(max(0, bisect_right(other._firsts, first) - 1), bisect_right(other._firsts, last)):
                low, high = max(first, other._firsts[place]), min(last, other._lasts[place])
                if low <= high:
                    found.append((low, high))
        return Ranges(found)

    def __sub__(self, other: "Ranges") -> "Ranges":
        found = []
        for first, last in self:
            for low, high in Ranges([(first, last)]) & other:
                if first < low:
                    found.append((first, low - 1))
                first = high + 1
            if first <= last:
                found.append((first, last))
        return Ranges(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __len__(self) -> int:
        """How many numbers it has."""
        return sum(last - first + 1 for first, last in self)

    def covers(self, first: int, last: int) -> bool:
        """Tell whether every number from `first` to `last` is in it."""
        place = bisect_right(self._firsts, first) - 1
        return place >= 0 and last <= self._lasts[place]

    def parts(self, size: int) -> list["Ranges"]:
        """Return it as sets of at most `size` ranges each; at least one."""
        pairs = list(self)
        return [Ranges(pairs[at : at + size]) for at in range(0, max(len(pairs), 1), size)]


def _pair(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (not last or last.isdecimal())) or len(text) > 40:
        return None
    return int(first), int(last or first)
