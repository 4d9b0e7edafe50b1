"""How far an edit got and what it disturbed: pure functions on held-out views, called by `protocol.py`.

Notation of docs/conventions.md: S true source view, T true edited view, B render of the unedited splats,
E render of the edited splats, R region that truth changes. What cannot be scored is NaN with a reason, never 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["CHANGE_THRESHOLD", "MAX_PSNR_DB", "Measured", "mask_iou", "progress", "psnr_db", "spill"]

CHANGE_THRESHOLD = 0.05
"""A pixel counts as changed from a mean difference over channels above this (about 13 of 255)."""

MAX_PSNR_DB = 100.0
"""What a view without any error scores, so that it stays in the mean; 8-bit views cannot reach it otherwise."""


class Measured(NamedTuple):
    """A metric of each view and over the views."""

    mean: float
    """Mean over the views that can be scored; NaN if none can."""
    per_view: tuple[float, ...]
    """NaN for a view that cannot be scored."""
    reason: str
    """Why views are left out of the mean; empty if none are."""


Views = Float[Tensor, "n 3 height width"]
Regions = Float[Tensor, "n height width"]


def progress(edited: Views, source: Views, truth: Views, regions: Regions) -> Measured:
    """How far from the source to the truth an edit got, inside the region that truth changes.

    Per view 1 - mean|E - T| / mean|S - T| inside R: 0 nothing done, 1 perfect, below 0 the wrong way. It is never
    clipped, so an edit that overshoots or goes the wrong way costs what it costs.

    Args:
        edited: E, renders of the edited splats.
        source: S, true views before the edit.
        truth: T, true views after it.
        regions: R, 1 where truth changes; counted as inside above 0.5.
    """
    inside = regions > 0.5
    left = _mean_inside((edited - truth).abs().mean(dim=1), inside)
    whole = _mean_inside((source - truth).abs().mean(dim=1), inside)
    values = [1 - a / b if b > 0 else math.nan for a, b in zip(left, whole, strict=True)]
    return _summary(values, "truth changes nothing that they see")


def spill(edited: Views, unedited: Views, regions: Regions) -> Measured:
    """Mean absolute change outside the region that truth changes, in [0, 1]; 0 leaves it as it was.

    Args:
        edited: E, renders of the edited splats.
        unedited: B, renders of the unedited splats.
        regions: R, 1 where truth changes; a view that it covers completely cannot be scored.
    """
    values = _mean_inside((edited - unedited).abs().mean(dim=1), regions <= 0.5)
    return _summary(values, "truth changes all of what they see")


def mask_iou(edited: Views, unedited: Views, regions: Regions) -> Measured:
    """Intersection over union of the pixels that an edit changed with those that truth changes, in [0, 1].

    A pixel is changed where |E - B|, averaged over channels, exceeds `CHANGE_THRESHOLD`.

    Args:
        edited: E, renders of the edited splats.
        unedited: B, renders of the unedited splats.
        regions: R, 1 where truth changes.
    """
    changed = (edited - unedited).abs().mean(dim=1) > CHANGE_THRESHOLD
    inside = regions > 0.5
    shared = (changed & inside).sum(dim=(1, 2)).tolist()
    either = (changed | inside).sum(dim=(1, 2)).tolist()
    values = [a / b if b else math.nan for a, b in zip(shared, either, strict=True)]
    return _summary(values, "neither truth nor the edit changes anything that they see")


def psnr_db(edited: Views, truth: Views) -> Measured:
    """Peak signal-to-noise ratio of whole views against the true edited views, in dB, at most `MAX_PSNR_DB`."""
    errors = (edited - truth).double().square().mean(dim=(1, 2, 3)).tolist()
    values = [min(MAX_PSNR_DB, -10 * math.log10(error)) if error > 0 else MAX_PSNR_DB for error in errors]
    return _summary(values, "")


def _mean_inside(maps: Float[Tensor, "n height width"], inside: Tensor) -> list[float]:
    """Mean of each map over its own pixels of `inside`; NaN where there are none."""
    sums = (maps.double() * inside).sum(dim=(1, 2))
    counts = inside.sum(dim=(1, 2))
    return [total / count if count else math.nan for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]


def _summary(values: list[float], reason: str) -> Measured:
    scored = [value for value in values if not math.isnan(value)]
    mean = math.fsum(scored) / len(scored) if scored else math.nan
    missing = len(values) - len(scored)
    note = f"{missing} of {len(values)} views are not scored: {reason}" if missing else ""
    return Measured(mean, tuple(values), note if values else "there are no held-out views")
