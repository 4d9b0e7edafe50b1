"""Where along the stages two runs part: numbers of each stage of both, with the uncertainty of their difference.

Beside them the ladder: what each step from exact truth to the run's own result costs, which adds up to all that is
missing to progress 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from restage.diagnose.attribution import Interval, Values, interval, subtract
from restage.diagnose.trials import Trial

__all__ = ["LADDER", "StageRow", "ladder", "measured_rows"]

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
    a: float
    """NaN where the run has none; `note` says why."""
    b: float
    difference: Interval
    """b - a."""
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
            values = {side: _values(trials[kind][side], metric) for side in "AB"}
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
        is_parted=difference.is_clear and abs(difference.mean) >= SMALLEST_SHOWN,
        note="" if math.isfinite(difference.standard_error) else "too few cases for an interval",
    )
