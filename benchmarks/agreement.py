"""Whether a metric ranks results as truth does: rank correlations, within groups or over all, with intervals by scene.

`truth.py` asks it of every metric that knows no truth; docs/truth.md is what came out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from restage.records import InputError, Score, derive_seed
from restage.scores.definitions import METRICS

__all__ = ["Agreement", "Judged", "judged_results", "pair_agreement", "rank_agreement"]

Within = Literal["all", "scene", "case"]

MIN_GROUP = 4
"""Results below which a group has no rank correlation worth the name."""


class Judged(NamedTuple):
    """A result by a metric and by truth, both turned so that more is better."""

    scene: str
    edit: str
    method: str
    editor: str
    seed: int
    metric: float
    truth: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a metric ranks results as truth does; 1 the same, 0 by chance, -1 the other way round."""

    metric: str
    truth: str
    """The metric that knows truth: progress, or spill (less is better)."""
    within: Within
    """`all`: results of all cases together; `scene`, `case`: within each, then the mean over them."""
    spearman: float
    """NaN with fewer than `MIN_GROUP` results, or if all are equal."""
    spearman_low: float
    spearman_high: float
    kendall: float
    """tau-b, which allows for ties."""
    kendall_low: float
    kendall_high: float
    num_results: int
    num_missing: int
    """Results that either metric could not score; they are in no number."""
    num_scenes: int


def judged_results(scores: Sequence[Score], metric: str, truth: str = "progress") -> tuple[list[Judged], int]:
    """Results with both numbers, and how many lack one.

    Raises:
        InputError: a metric is unknown, or one that ranks nothing.
    """
    for name in (metric, truth):
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    signs = {name: -1.0 if METRICS[name].better == "lower" else 1.0 for name in (metric, truth)}
    values: dict[tuple[str, str, str, str, int], dict[str, float]] = defaultdict(dict)
    for score in scores:
        if score.metric in signs:
            who = score.scene, score.edit, score.method, score.editor, score.seed
            values[who][score.metric] = signs[score.metric] * score.value
    both = [Judged(*who, found.get(metric, math.nan), found.get(truth, math.nan)) for who, found in values.items()]
    scored = [one for one in both if not (math.isnan(one.metric) or math.isnan(one.truth))]
    return scored, len(both) - len(scored)


def rank_agreement(
    scores: Sequence[Score],
    metric: str,
    *,
    truth: str = "progress",
    within: Within = "all",
    num_resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Spearman's and Kendall's rank correlation of a metric with truth.

    The intervals are the middle 95% of `num_resamples` draws of scenes with replacement (a cluster bootstrap), since
    results of one scene are alike. Few scenes give intervals that are too narrow, whatever the number of results.

    Args:
        scores: Rows of a study.
        metric: A metric that knows no truth.
        truth: One that does.
        within: What is ranked together.
        num_resamples: Draws of scenes.
        seed: Of the draws.
    """
    results, num_missing = judged_results(scores, metric, truth)
    scenes = sorted({one.scene for one in results})
    rng = np.random.default_rng(derive_seed(seed, metric, truth, within))
    draws = [[scenes[i] for i in rng.integers(0, len(scenes), len(scenes))] for _ in range(num_resamples)]
    found = {}
    for name, correlate in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        by_scene = _by_scene(results, scenes, within, correlate)
        value = _over(by_scene, scenes, within, correlate)
        drawn = np.array([_over(by_scene, draw, within, correlate) for draw in draws if len(scenes) > 1])
        drawn = drawn[~np.isnan(drawn)] if len(drawn) else drawn
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (math.nan, math.nan)
        found |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return Agreement(
        metric=metric,
        truth=truth,
        within=within,
        num_results=len(results),
        num_missing=num_missing,
        num_scenes=len(scenes),
        **found,
    )


_Correlate = Callable[..., tuple[float, float]]
_Parts = dict[str, list]


def _by_scene(results: Sequence[Judged], scenes: Sequence[str], within: Within, correlate: _Correlate) -> _Parts:
    """For each scene its results, or, where ranking is within groups, the correlation of each of its groups."""
    if within == "all":
        return {scene: [one for one in results if one.scene == scene] for scene in scenes}
    groups: dict[Hashable, list[Judged]] = defaultdict(list)
    for one in results:
        groups[one.scene if within == "scene" else (one.scene, one.edit)].append(one)
    parts: _Parts = {scene: [] for scene in scenes}
    for group in groups.values():
        parts[group[0].scene].append(_correlation(group, correlate))
    return parts


def _over(parts: _Parts, scenes: Sequence[str], within: Within, correlate: _Correlate) -> float:
    drawn = [part for scene in scenes for part in parts[scene]]
    if within == "all":
        return _correlation(drawn, correlate)
    values = [value for value in drawn if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.nan


def _correlation(results: Sequence[Judged], correlate: _Correlate) -> float:
    metric, truth = [one.metric for one in results], [one.truth for one in results]
    if len(results) < MIN_GROUP or len(set(metric)) < 2 or len(set(truth)) < 2:
        return math.nan
    return float(correlate(metric, truth)[0])


def pair_agreement(scores: Sequence[Score], metric: str, *, truth: str = "progress", gap: float = 0.1) -> float:
    """How often a metric prefers the better of two results of the same case that truth tells apart by more than `gap`.

    Returns:
        A share in [0, 1], 0.5 for a coin; ties count half. NaN without such a pair.
    """
    cases: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged_results(scores, metric, truth)[0]:
        cases[one.scene, one.edit].append(one)
    votes = [
        0.5 + 0.5 * float(np.sign((one.metric - other.metric) * (one.truth - other.truth)))
        for group in cases.values()
        for index, one in enumerate(group)
        for other in group[:index]
        if abs(one.truth - other.truth) > gap
    ]
    return math.fsum(votes) / len(votes) if votes else math.nan
