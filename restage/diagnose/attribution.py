"""Splits the difference between two runs into shares of their parts, and says where along the stages they part.

Notation: v(S) is the quality with the parts S taken from B and all others from A, so v({}) is A and v(all) is B. Beside
the shares the ladder: what each step from exact truth to the run's own result costs, which adds up to all that is
missing to progress 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from restage.diagnose.parts import PairPool, RunParts
from restage.diagnose.trials import Trial
from restage.diffusion.clip import load_clip
from restage.pairs.score import ImageTextModel, PairScores, score_pairs
from restage.prompts.store import read_prompts
from restage.records import InputError
from restage.run.layout import PROMPTS
from restage.scores.statistics import clustered_estimate, student_reach

__all__ = ["Attribution", "Interval", "LADDER", "Share", "StageRow", "Swap", "Values", "attribute", "interval"]
__all__ += ["ladder", "measured_rows", "pair_rows", "share_of", "subtract"]

CONFIDENCE = 0.95

Values = Mapping[str, float]
"""A number for each case."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over cases with its uncertainty."""

    mean: float  # NaN if there is no case
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
    share: Interval  # mean of `forward` and `reverse`
    forward: Interval  # v({}) - v({part}): what A loses with B's part
    reverse: Interval  # v(all but part) - v(all): what B gains with A's part

    @property
    def interaction(self) -> float:
        """How much more the part costs in A than in B: the work that it shares with other parts."""
        return self.forward.mean - self.reverse.mean


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A difference and its parts: total = sum of shares + remainder."""

    total: Interval  # v({}) - v(all): what is lost from A to B
    shares: tuple[Share, ...]  # largest first
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
    a_with_b: Values  # v({part}): A with B's part
    b_with_a: Values  # v(all but part): B with A's part


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


LADDER = {
    "single views": "edited views that are wrong one by one",
    "mask": "masks that are not the true ones",
    "agreement": "joining the views: what they disagree in, and what the fit makes of it",
    "3D fit": "the 3D half alone: with exact views and masks",
}
"""Steps at which progress is lost, and what each means."""

SMALLEST_SHOWN = 5e-4
"""Differences below this print as 0.000."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One number of one stage, of both runs."""

    stage: str
    metric: str
    a: float  # NaN where the run has none; `note` says why
    b: float
    difference: Interval  # b - a
    is_parted: bool
    """Whether the difference is beyond its noise, and large enough to be seen in print."""
    note: str = ""


TrialsOf = Mapping[str, Mapping[str, Trial]]
"""Trials by side, then by case."""

MEASURED = (
    ("edit model on single held-out views", "single views", ("progress", "spill", "mask_iou")),
    ("views as the method asked for them", "whole", ("views_progress",)),
    ("agreement between views", "whole", ("views_disagreement",)),
    ("unedited scene", "scene", ("psnr_db", "disagreement")),
    ("3D half with exact views and masks", "exact", ("progress",)),
    ("result", "whole", ("progress", "spill", "mask_iou", "psnr_db")),
)


def measured_rows(trials: Mapping[str, TrialsOf], scenes: Mapping[str, str]) -> list[StageRow]:
    """Rows of the stages that trials measure, in the order data flows."""
    rows = []
    for stage, kind, metrics in MEASURED:
        for metric in metrics:
            values = {side: {case: t.numbers[metric] for case, t in trials[kind][side].items()} for side in "AB"}
            rows.append(_row(stage, metric, values, scenes))
    return rows


def ladder(trials: Mapping[str, TrialsOf], scenes: Mapping[str, str]) -> dict[str, dict[str, Interval]]:
    """Returns what each step costs in A and in B, and the difference (`A`, `B`, `B - A`); sums to 1 - progress.

    With p the result, m the result with true masks, s the mean over the edited views by themselves, and e the result
    with true views and masks: 1 - s, m - p, s - m - (1 - e), and 1 - e.
    """
    costs = {side: {name: {} for name in LADDER} for side in "AB"}
    for side in "AB":
        for case, whole in trials["whole"][side].items():
            p, s = whole.numbers["progress"], whole.numbers["views_progress"]
            m, e = (trials[kind][side][case].numbers["progress"] for kind in ("exact masks", "exact"))
            steps = (1 - s, m - p, s - m - (1 - e), 1 - e)
            for name, cost in zip(LADDER, steps, strict=True):
                costs[side][name][case] = cost
    return {
        name: {
            "A": interval(costs["A"][name], scenes),
            "B": interval(costs["B"][name], scenes),
            "B - A": interval(subtract(costs["B"][name], costs["A"][name]), scenes),
        }
        for name in LADDER
    }


def _row(stage: str, metric: str, values: Mapping[str, Values], scenes: Mapping[str, str]) -> StageRow:
    means = {side: interval(values[side], scenes).mean for side in "AB"}
    difference = interval(subtract(values["B"], values["A"]), scenes)
    return StageRow(
        stage=stage,
        metric=metric,
        a=means["A"],
        b=means["B"],
        difference=difference,
        is_parted=difference.is_clear and abs(difference.mean) >= SMALLEST_SHOWN,
        note="" if math.isfinite(difference.standard_error) else "too few cases for an interval",
    )


NUM_LOOKED_AT = 32
"""Stored pairs that are scored anew, evenly chosen."""
SCORES = ("direction_similarity", "source_text", "target_text")


def pair_rows(runs: Mapping[str, RunParts], clip: Path) -> list[StageRow]:
    """Rows of prompts and pairs; without pairs in both runs, of prompts only.

    Stored pairs are also scored anew with the CLIP: captions may have changed after they were scored.
    """
    pools = {side: run.pairs for side, run in runs.items() if run.pairs is not None}
    rows = [_prompt_row(runs)]
    if len(pools) < 2:
        return rows
    verdicts = {side: [float(pool.is_accepted(key)) for key in pool.rows] for side, pool in pools.items()}
    rows.append(_unpaired("pairs", "share accepted", verdicts))
    model = load_clip(clip)
    accepted = {side: [row for key, row in pool.rows.items() if pool.is_accepted(key)] for side, pool in pools.items()}
    now = {side: _score_again(pool, model) for side, pool in pools.items()}
    for metric in SCORES:
        kept = {side: [math.nan if row[metric] is None else row[metric] for row in accepted[side]] for side in pools}
        rows.append(_unpaired("pairs", f"{metric} of accepted pairs, as recorded", kept))
        found = {side: [getattr(scores, metric) for scores in now[side]] for side in now}
        rows.append(_unpaired("pairs", f"{metric} of accepted pairs, measured now", found))
    return rows


def _score_again(pool: PairPool, clip: ImageTextModel) -> list[PairScores]:
    pairs = list(pool.stored.values())
    picks = np.linspace(0, len(pairs) - 1, min(NUM_LOOKED_AT, len(pairs))).round().astype(int)
    chosen = [pairs[pick] for pick in picks]
    if not chosen:
        return []
    return score_pairs(
        clip,
        [pair.prompt for pair in chosen],
        sources=torch.stack([pair.source for pair in chosen]),
        edited=torch.stack([pair.edited for pair in chosen]),
        masks=torch.stack([pair.mask for pair in chosen]),
    )


def _prompt_row(runs: Mapping[str, RunParts]) -> StageRow:
    counts = {side: _count_prompts(run) for side, run in runs.items()}
    mean = counts["B"] - counts["A"]
    return StageRow(
        stage="prompts",
        metric="pairs of prompts",
        a=counts["A"],
        b=counts["B"],
        difference=Interval(mean=mean, standard_error=0.0, low=mean, high=mean, num_cases=1),
        is_parted=abs(mean) > 0,
    )


def _count_prompts(run: RunParts) -> float:
    try:
        return float(len(read_prompts(run.path / PROMPTS)))
    except InputError:
        return math.nan


def _unpaired(stage: str, metric: str, samples: Mapping[str, Sequence[float]]) -> StageRow:
    """Difference of means of two samples that are not matched, with the normal interval."""
    clean = {side: np.array([value for value in sample if not math.isnan(value)]) for side, sample in samples.items()}
    means = {side: float(values.mean()) if len(values) else math.nan for side, values in clean.items()}
    variances = [float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan for values in clean.values()]
    error, mean = math.sqrt(sum(variances)), means["B"] - means["A"]
    count = min(len(values) for values in clean.values())
    reach = 1.96 * error
    between = Interval(mean=mean, standard_error=error, low=mean - reach, high=mean + reach, num_cases=count)
    is_parted = between.is_clear and error > 0
    return StageRow(stage=stage, metric=metric, a=means["A"], b=means["B"], difference=between, is_parted=is_parted)
