"""The arithmetic: percentiles, medians, and how a number is written."""

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["growth", "median", "number", "percentile"]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` of 100 of the samples lie, interpolated between neighbours. ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def growth(samples: Sequence[float]) -> float:
    """How far a series grew: the median of its last quarter over that of its second quarter, as a ratio.

    The first quarter is left out: caches and pools fill then. ValueError for fewer than eight samples.
    """
    if len(samples) < 8:
        raise ValueError("too few samples to tell a trend")
    quarter = len(samples) // 4
    before = median(samples[quarter : 2 * quarter])
    if before <= 0:
        raise ValueError("a size must be positive")
    return median(samples[-quarter:]) / before


def number(value: float) -> str:
    """Three significant digits, without an exponent: 0.612, 9.7, 71, 1310."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
