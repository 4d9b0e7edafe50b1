"""Splits the difference between two runs into shares of their parts, from what swaps of one part at a time gave.

Pure functions of numbers; `diagnosis` makes the swaps. Notation: v(S) is the quality with the parts S taken from B and
all others from A, so v({}) is A and v(all) is B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from restage.scores.statistics import clustered_estimate, student_reach

__all__ = ["Attribution", "Interval", "Share", "Swap", "Values", "attribute", "interval", "share_of", "subtract"]

CONFIDENCE = 0.95

Values = Mapping[str, float]
"""A number for each case."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over cases with its uncertainty."""

    mean: float
    """NaN if there is no case."""
    standard_error: float
    """Clustered by scene; by case where all cases are of one scene; NaN with fewer than two."""
    low: float
    high: float
    """95 % interval by Student's t with one degree of freedom less than clusters; infinite with fewer than two."""
    num_cases: int

    num_clusters: int = 2

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def is_clear_of(self, num_tests: int) -> bool:
        """Whether the interval excludes zero when several of its kind are looked at (Bonferroni)."""
        if self.num_clusters < 2:
            return False
        confidence = 1 - (1 - CONFIDENCE) / max(num_tests, 1)
        return abs(self.mean) > student_reach(self.standard_error, self.num_clusters, confidence=confidence)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one part in the difference; positive where B's part is the worse one."""

    component: str
    share: Interval
    """Mean of `forward` and `reverse`."""
    forward: Interval
    """v({}) - v({part}): what A loses with B's part."""
    reverse: Interval
    """v(all but part) - v(all): what B gains with A's part."""

    def renamed(self, component: str) -> Share:
        """The same share under another name."""
        return replace(self, component=component)

    @property
    def interaction(self) -> float:
        """How much more the part costs in A than in B: the work that it shares with other parts."""
        return self.forward.mean - self.reverse.mean


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A difference and its parts: total = sum of shares + remainder."""

    total: Interval
    """v({}) - v(all): what is lost from A to B."""
    shares: tuple[Share, ...]
    """Largest first."""
    remainder: Interval
    """What is left: interactions of three and more parts, and parts that could not be swapped."""


def interval(values: Values, scenes: Mapping[str, str]) -> Interval:
    """Mean over cases with a 95 % interval; NaN is ignored, and cases of one scene count as alike."""
    kept = {case: value for case, value in values.items() if not math.isnan(value)}
    clusters = [scenes[case] for case in kept]
    if len(set(clusters)) < 2:
        clusters = list(kept)
    estimate = clustered_estimate(list(kept.values()), clusters)
    num_clusters = len(set(clusters))
    is_alone = num_clusters < 2
    reach = math.inf if is_alone else student_reach(estimate.standard_error, num_clusters, confidence=CONFIDENCE)
    return Interval(
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        low=estimate.mean - reach,
        high=estimate.mean + reach,
        num_cases=len(kept),
        num_clusters=num_clusters,
    )


def subtract(first: Values, second: Values) -> dict[str, float]:
    """Difference of each case that both have."""
    return {case: first[case] - second[case] for case in first if case in second}


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Values of both runs with one part exchanged."""

    component: str
    a_with_b: Values
    """v({part}): A with B's part."""
    b_with_a: Values
    """v(all but part): B with A's part."""


def share_of(swap: Swap, a: Values, b: Values, scenes: Mapping[str, str]) -> Share:
    """The share of one part, the mean of a swap into A and a swap into B."""
    forward, reverse = subtract(a, swap.a_with_b), subtract(swap.b_with_a, b)
    estimates = [interval(part, scenes) for part in (_mean(forward, reverse), forward, reverse)]
    return Share(component=swap.component, share=estimates[0], forward=estimates[1], reverse=estimates[2])


def attribute(a: Values, b: Values, swaps: Sequence[Swap], scenes: Mapping[str, str]) -> Attribution:
    """Split v({}) - v(all) into shares of parts and a remainder.

    For two parts these are the Shapley values (Shapley 1953). For more they are the two outermost terms of them: of
    the orders in which parts can be exchanged, those in which the part comes first or last. The remainder is shown,
    never spread over the parts.
    """
    total = subtract(a, b)
    rest = total
    for swap in swaps:
        rest = subtract(rest, _mean(subtract(a, swap.a_with_b), subtract(swap.b_with_a, b)))
    shares = sorted((share_of(swap, a, b, scenes) for swap in swaps), key=lambda share: -abs(share.share.mean))
    return Attribution(total=interval(total, scenes), shares=tuple(shares), remainder=interval(rest, scenes))


def _mean(first: Values, second: Values) -> dict[str, float]:
    return {case: (first[case] + second[case]) / 2 for case in first if case in second}
