"""How sure a mean is, and a difference between two methods, when edits of one scene are alike: clustered by scene.

NaN means not scored: it is counted, and never enters a mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from restage.records import InputError, Score

__all__ = ["Estimate", "clustered_estimate", "estimate_scores", "paired_difference", "student_reach"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean of a metric over results."""

    mean: float  # NaN if nothing could be scored; then `reason` says why
    standard_error: float
    """Clustered by scene; NaN with fewer than two scenes, since one scene says nothing about others."""
    num_scored: int
    num_missing: int
    """Results whose value is NaN; they are not in the mean, and the table says how many they are."""
    num_scenes: int  # scenes among the scored results
    reason: str = ""
    """Why results are missing, each reason once; empty when none is, or when nobody said."""

    @property
    def reach(self) -> float:
        """Half of the 95 % interval; NaN with fewer than two scenes."""
        return student_reach(self.standard_error, self.num_scenes)


def student_reach(standard_error: float, num_clusters: int, *, confidence: float = 0.95) -> float:
    """Half the width of Student's interval with (clusters - 1) degrees of freedom; NaN with fewer than two clusters."""
    if num_clusters < 2:
        return math.nan
    from scipy import stats  # here, since a second of import is too much for those who only read tables

    return float(stats.t.ppf((1 + confidence) / 2, num_clusters - 1)) * standard_error


def clustered_estimate(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Mean and its cluster-robust standard error.

    The variance is G/(G-1) / n^2 times the sum over the G clusters of (sum of the residuals in the cluster)^2
    (Liang and Zeger 1986, for a mean). With one value per cluster it is the usual standard error.
    """
    scored = [(value, cluster) for value, cluster in zip(values, clusters, strict=True) if not math.isnan(value)]
    mean = math.fsum(value for value, _ in scored) / len(scored) if scored else math.nan
    # Residuals are summed within a scene before they are squared: results of one scene err in the same direction, and
    # their errors must not cancel out as independent ones would.
    sums: dict[str, float] = defaultdict(float)
    for value, cluster in scored:
        sums[cluster] += value - mean
    error = math.nan
    if len(sums) > 1:
        squares = math.fsum(total**2 for total in sums.values())
        # G/(G-1) makes up for residuals being taken from the sample's own mean, as n/(n-1) does for single values.
        error = math.sqrt(len(sums) / (len(sums) - 1) * squares) / len(scored)
    return Estimate(
        mean=mean,
        standard_error=error,
        num_scored=len(scored),
        num_missing=len(values) - len(scored),
        num_scenes=len(sums),
    )


def estimate_scores(scores: Sequence[Score]) -> Estimate:
    """Mean of rows of one metric, clustered by scene, with the reasons of those that are not scored."""
    found = clustered_estimate([score.value for score in scores], [score.scene for score in scores])
    reasons = dict.fromkeys(score.reason or "no reason given" for score in scores if math.isnan(score.value))
    return replace(found, reason="; ".join(reasons) or ("" if scores else "not measured"))


def paired_difference(
    scores: Sequence[Score], metric: str, *, first: tuple[str, str], second: tuple[str, str]
) -> Estimate:
    """How much more of a metric one contender has than another, over the same scenes, edits and seeds.

    A contender that has no seeds of its own, such as `nothing`, which is run once, is compared with every seed of the
    other. The interval is Student's with (number of scenes - 1) degrees of freedom on the clustered standard error
    (Cameron and Miller 2015, "A practitioner's guide to cluster-robust inference", section VI).
    """
    values = {who: _values(scores, metric, who) for who in (first, second)}
    for who, found in values.items():
        if not found:
            raise InputError(f"no rows of {metric} for {who[0]} with {who[1]}")
    pairs = []
    for scene, edit, seed in sorted({*values[first], *values[second]}):
        one, other = (_match(values[who], scene, edit, seed) for who in (first, second))
        if one is not None and other is not None:
            pairs.append((scene, one - other))
    return clustered_estimate([gap for _, gap in pairs], [scene for scene, _ in pairs])


_Values = dict[tuple[str, str, int], float]


def _values(scores: Sequence[Score], metric: str, who: tuple[str, str]) -> _Values:
    return {
        (score.scene, score.edit, score.seed): score.value
        for score in scores
        if score.metric == metric and (score.method, score.editor) == who
    }


def _match(values: _Values, scene: str, edit: str, seed: int) -> float | None:
    """The value of the same case and seed, or of its only seed."""
    if (scene, edit, seed) in values:
        return values[scene, edit, seed]
    others = [value for (other, name, _), value in values.items() if (other, name) == (scene, edit)]
    return others[0] if len(others) == 1 else None
