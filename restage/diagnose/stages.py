"""Where along the stages two runs part: numbers of each stage of both, with the uncertainty of their difference.

Beside them the ladder: what each step from exact truth to the run's own result costs, which adds up to all that is
missing to progress 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from restage.diagnose.attribution import Interval, Values, interval, subtract
from restage.diagnose.parts import RunParts
from restage.diagnose.trials import Trial
from restage.prompts.store import read_prompts
from restage.records import InputError

__all__ = ["LADDER", "StageRow", "ladder", "stage_rows"]

LADDER = {
    "single views": "edited views that are wrong one by one",
    "mask": "masks that are not the true ones",
    "agreement": "joining the views: what they disagree in, and what the fit makes of it",
    "3D fit": "the 3D half alone: with exact views and masks",
}
"""Where progress is lost, and what it means."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One number of one stage, of both runs."""

    stage: str
    metric: str
    a: float
    """NaN where the run has none; `note` says why."""
    b: float
    difference: Interval
    """b - a."""
    is_parted: bool
    """Whether the difference is beyond its noise."""
    note: str = ""


TrialsOf = Mapping[str, Mapping[str, Trial]]
"""By side, then by case."""

MEASURED = (
    ("edit model on single held-out views", "single views", ("progress", "spill", "mask_iou")),
    ("views as the method asked for them", "whole", ("views_progress",)),
    ("agreement between views", "whole", ("views_disagreement",)),
    ("unedited scene", "scene", ("psnr_db", "disagreement")),
    ("3D half with exact views and masks", "exact", ("progress",)),
    ("result", "whole", ("progress", "spill", "mask_iou", "psnr_db")),
)


def stage_rows(
    runs: Mapping[str, RunParts], trials: Mapping[str, TrialsOf], scenes: Mapping[str, str]
) -> list[StageRow]:
    """All rows, in the order data flows.

    Args:
        runs: `A` and `B`.
        trials: Trials of both runs as they are, by kind, side and case.
        scenes: The scene of each case.
    """
    rows = [*_prompt_rows(runs), *_pair_rows(runs)]
    for stage, kind, metrics in MEASURED:
        for metric in metrics:
            values = {side: _values(trials[kind][side], metric) for side in "AB"}
            rows.append(_row(stage, metric, values, scenes))
    return rows


def ladder(trials: Mapping[str, TrialsOf], scenes: Mapping[str, str]) -> dict[str, dict[str, Interval]]:
    """What each step costs in A and in B, and their difference (`A`, `B`, `B - A`); sums to 1 - progress.

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


def _values(trials: Mapping[str, Trial], metric: str) -> Values:
    return {case: trial.numbers[metric] for case, trial in trials.items()}


def _row(stage: str, metric: str, values: Mapping[str, Values], scenes: Mapping[str, str]) -> StageRow:
    means = {side: interval(values[side], scenes).mean for side in "AB"}
    difference = interval(subtract(values["B"], values["A"]), scenes)
    return StageRow(
        stage=stage,
        metric=metric,
        a=means["A"],
        b=means["B"],
        difference=difference,
        is_parted=difference.is_clear,
        note="" if math.isfinite(difference.standard_error) else "too few cases for an interval",
    )


def _prompt_rows(runs: Mapping[str, RunParts]) -> list[StageRow]:
    counts = {}
    for side, run in runs.items():
        try:
            counts[side] = float(len(read_prompts(run.path / "prompts" / "prompts.jsonl")))
        except InputError:
            counts[side] = math.nan
    exact = _exact(counts["B"] - counts["A"])
    is_parted = counts["A"] != counts["B"] and math.isfinite(exact.mean)
    return [
        StageRow(
            stage="prompts",
            metric="pairs of prompts",
            a=counts["A"],
            b=counts["B"],
            difference=exact,
            is_parted=is_parted,
        )
    ]


def _pair_rows(runs: Mapping[str, RunParts]) -> list[StageRow]:
    pools = {side: run.pairs for side, run in runs.items()}
    if any(pool is None for pool in pools.values()):
        return []
    rows = {side: list(pool.rows.values()) for side, pool in pools.items() if pool is not None}
    accepted = {side: [float(row["accepted"]) for row in rows[side]] for side in "AB"}
    found = [_unpaired("pairs", "share accepted", accepted)]
    for metric in ("direction_similarity", "target_text"):
        kept = {side: [float(row[metric]) for row in rows[side] if row["accepted"]] for side in "AB"}
        found.append(_unpaired("pairs", f"{metric} of accepted pairs", kept))
    return found


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


def _exact(value: float) -> Interval:
    return Interval(mean=value, standard_error=0.0, low=value, high=value, num_cases=1)
