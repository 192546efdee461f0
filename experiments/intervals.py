"""Differences with their 95 % intervals. A difference is "resolved" where its interval leaves out 0 (a ratio's: 1)."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Interval(NamedTuple):
    """A value, and the ends of its 95 % interval. null: what it is where there is no effect."""

    value: float
    low: float
    high: float
    null: float = 0.0

    @property
    def resolved(self) -> bool:
        return not self.low <= self.null <= self.high

    def text(self, scale: float = 1.0, form: str = "+.1f") -> str:
        """ "+2.7 (−0.9 to +6.3)", times `scale`."""
        value, low, high = (f"{scale * of:{form}}" for of in self[:3])
        return f"{value} ({low} to {high})"

    def verdict(self) -> str:
        return "resolved" if self.resolved else "not resolved"


def _half(parts: Sequence[float], counts: Sequence[int]) -> float:
    """Half of the interval of a sum whose parts have these variances, each a mean over so many seeds (Welch)."""
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def difference(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Of the means over seeds, two at least, by Welch's t-test."""
    value = statistics.mean(after) - statistics.mean(before)
    half = _half([statistics.variance(of) / len(of) for of in (after, before)], [len(after), len(before)])
    return Interval(value, value - half, value + half)


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Interval:
    """The mean difference of what belongs together, as of trainings with one seed; two pairs at least, by a t-test."""
    apart = [one - other for one, other in zip(after, before, strict=True)]
    value, half = statistics.mean(apart), _half([statistics.variance(apart) / len(apart)], [len(apart)])
    return Interval(value, value - half, value + half)


def ratio(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Of the means over seeds, two at least; the interval is that of its logarithm, from the relative errors."""
    value = statistics.mean(after) / statistics.mean(before)
    parts = [statistics.variance(of) / len(of) / statistics.mean(of) ** 2 for of in (after, before)]
    half = _half(parts, [len(after), len(before)])
    return Interval(value, value * math.exp(-half), value * math.exp(half), null=1.0)


def paired_ratio(after: Sequence[float], before: Sequence[float]) -> Interval:
    """The geometric mean of the ratios of what belongs together, two pairs at least; its interval by a t-test."""
    value, low, high, _ = paired_difference([math.log(of) for of in after], [math.log(of) for of in before])
    return Interval(math.exp(value), math.exp(low), math.exp(high), null=1.0)


def share(count: int, of: int, null: float) -> Interval:
    """Of as many cases, by the exact binomial test."""
    ends = stats.binomtest(count, of).proportion_ci()
    return Interval(count / of, float(ends.low), float(ends.high), null)


def of_other_images(after: tuple[float, float, float], before: tuple[float, float, float]) -> Interval:
    """The difference of two values (value, low, high) as if they were of different images. Of the same images its
    interval is narrower; that takes their answers, image by image.
    """
    value = after[0] - before[0]
    half = math.hypot(*((high - low) / 2 for _, low, high in (after, before)))
    return Interval(value, value - half, value + half)
