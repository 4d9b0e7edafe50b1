"""How far an edit got, what it disturbed, how well views agree: pure functions, called by `measure.py` and `diagnose`.

Notation of docs/conventions.md: S true source view, T true edited view, B render of the unedited splats,
E render of the edited splats, R region that truth changes. C(x) is the unit-norm embedding of a picture or a text,
o and e are frames of the same orbit before and after. What cannot be scored is NaN with a reason, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.scenes.losses import MARGIN, WINDOW, ssim_map

__all__ = ["CHANGE_THRESHOLD", "MAX_PSNR_DB", "Measured", "clip_direction", "depth_error", "disagreement"]
__all__ += ["edit_consistency", "feature_similarity", "fit_error", "frame_consistency", "mask_iou", "no_op"]
__all__ += ["progress", "psnr_db", "share_moved", "spill", "ssim", "step_consistency", "summarise", "text_similarity"]
__all__ += ["typeset_consistency", "unscored", "wrong_way"]

CHANGE_THRESHOLD = 0.05
"""A pixel counts as changed from a mean difference over channels above this (about 13 of 255)."""

MAX_PSNR_DB = 100.0
"""What a view without any error scores, so that it stays in the mean; 8-bit views cannot reach it otherwise."""


class Measured(NamedTuple):
    """A metric of each view and over the views."""

    mean: float
    """Mean over the views that can be scored; NaN if none can."""
    per_view: tuple[float, ...]  # NaN for a view that cannot be scored
    reason: str  # why views are left out of the mean; empty if none are


Views = Float[Tensor, "n 3 height width"]
Regions = Float[Tensor, "n height width"]


def progress(edited: Views, source: Views, truth: Views, regions: Regions) -> Measured:
    """How far from the source S to the truth T an edit got, inside the region that truth changes.

    Per view 1 - mean|E - T| / mean|S - T| inside R: 0 nothing done, 1 perfect, below 0 the wrong way. It is never
    clipped, so an edit that overshoots or goes the wrong way costs what it costs. Of graded photographs S is B, and T
    is B graded (see `restage.edit.editors.grade.anchors_of`).
    """
    values = [1 - share for share in _shares_of_change(edited - truth, source, truth, regions)]
    return summarise(values, "truth changes nothing that they see")


def fit_error(unedited: Views, source: Views, truth: Views, regions: Regions) -> Measured:
    """What the unedited scene is off already, as a share of what truth changes: mean|B - S| / mean|S - T| inside R."""
    return summarise(
        _shares_of_change(unedited - source, source, truth, regions), "truth changes nothing that they see"
    )


def _shares_of_change(error: Views, source: Views, truth: Views, regions: Regions) -> list[float]:
    """Mean |error| inside R as a share of mean |S - T| there; NaN where truth changes nothing."""
    inside = regions > 0.5
    found, whole = (_mean_inside(maps.abs().mean(dim=1), inside) for maps in (error, source - truth))
    return [a / b if b > 0 else math.nan for a, b in zip(found, whole, strict=True)]


def spill(edited: Views, unedited: Views, regions: Regions) -> Measured:
    """Mean |E - B| outside the region that truth changes, in [0, 1]; 0 leaves it as it was."""
    values = _mean_inside((edited - unedited).abs().mean(dim=1), regions <= 0.5)
    return summarise(values, "truth changes all of what they see")


def mask_iou(edited: Views, unedited: Views, source: Views, truth: Views) -> Measured:
    """Intersection over union of the pixels that an edit changed with those that truth changes, in [0, 1].

    A pixel is changed where |E - B|, or |T - S|, averaged over channels, exceeds `CHANGE_THRESHOLD`: both by the same
    measure, so that truth itself scores 1. (R, which counts any change beyond rounding, holds faint shadows and
    reflections, too: against it truth itself scores 0.71 on the miniature's edits.)
    """
    changed = (edited - unedited).abs().mean(dim=1) > CHANGE_THRESHOLD
    inside = (truth - source).abs().mean(dim=1) > CHANGE_THRESHOLD
    shared = (changed & inside).sum(dim=(1, 2)).tolist()
    either = (changed | inside).sum(dim=(1, 2)).tolist()
    values = [a / b if b else math.nan for a, b in zip(shared, either, strict=True)]
    return summarise(values, "neither truth nor the edit changes anything that they see")


def psnr_db(edited: Views, truth: Views, where: Regions | None = None) -> Measured:
    """Peak signal-to-noise ratio of E against T, in dB, at most `MAX_PSNR_DB`; over pixels `where` it is above 0.5."""
    squares = (edited - truth).square().mean(dim=1)
    errors = _mean_inside(squares, torch.ones_like(squares) > 0 if where is None else where > 0.5)
    least = 10 ** (-MAX_PSNR_DB / 10)
    values = [
        math.nan if math.isnan(error) else min(MAX_PSNR_DB, -10 * math.log10(max(error, least))) for error in errors
    ]
    return summarise(values, "no pixel of theirs is in the region")


def ssim(edited: Views, truth: Views, where: Regions | None = None) -> Measured:
    """Structural similarity of E and T, in [-1, 1]; 1 for equal views (Wang et al. 2004, equation 13).

    Its window takes in what lies around a pixel, so that the value of a region (`where` above 0.5) depends on its
    surroundings, too; the outermost pixels, which have no whole window, do not count.
    """
    if min(edited.shape[2:]) < WINDOW:
        return unscored(f"views of {edited.shape[3]}x{edited.shape[2]} pixels are smaller than the window of SSIM")
    maps = [ssim_map(first, second).mean(dim=0) for first, second in zip(edited, truth, strict=True)]
    similarity = torch.stack(maps) if maps else torch.zeros(0, 1, 1)
    inside = torch.ones_like(similarity) > 0 if where is None else where[:, MARGIN:-MARGIN, MARGIN:-MARGIN] > 0.5
    return summarise(_mean_inside(similarity, inside), "no pixel of theirs is in the region")


def depth_error(
    edited_depth: Regions, edited_alpha: Regions, truth_depth: Regions, regions: Regions | None = None
) -> Measured:
    """Mean |z(E) - z(T)| / z(T), the absolute relative error of depth; 0 is perfect.

    A pixel that E leaves more than half empty counts as 1, as if its surface were at the camera: else holes would be
    free. Pixels where truth shows no surface (`inf`) do not count.
    """
    is_shown = torch.isfinite(truth_depth) & (truth_depth > 0)
    truth = torch.where(is_shown, truth_depth, 1.0)
    is_empty = (edited_alpha < 0.5) | ~torch.isfinite(edited_depth)
    errors = torch.where(is_empty, 1.0, (torch.where(is_empty, truth, edited_depth) - truth).abs() / truth)
    inside = is_shown if regions is None else is_shown & (regions > 0.5)
    return summarise(_mean_inside(errors, inside), "truth changes no surface that they see")


def share_moved(edited: Views, unedited: Views, source: Views, truth: Views, *, regions: Regions) -> float:
    """Mean |E - B| inside R as a share of mean |S - T| there, over all views at once; NaN if truth changes nothing."""
    inside = regions[:, None] > 0.5
    whole = float(((source - truth).abs() * inside).double().sum())
    return float(((edited - unedited).abs() * inside).double().sum()) / whole if whole > 0 else math.nan


def no_op(share: float, threshold: float) -> Measured:
    """1 if an edit moved the region by less than `threshold` of what truth moves it; see `share_moved`."""
    if math.isnan(share):
        return unscored("truth changes nothing in the held-out views")
    return Measured(float(share < threshold), (), "")


def wrong_way(share: float, progress_mean: float, threshold: float) -> Measured:
    """1 if an edit is no no-op and ended further from truth than the source is."""
    if math.isnan(share) or math.isnan(progress_mean):
        return unscored("truth changes nothing in the held-out views")
    return Measured(float(share >= threshold and progress_mean < 0), (), "")


def _mean_inside(maps: Float[Tensor, "n height width"], inside: Tensor) -> list[float]:
    """Mean of each map over its own pixels of `inside`; NaN where there are none."""
    sums = (maps.double() * inside).sum(dim=(1, 2))
    counts = inside.sum(dim=(1, 2))
    return [total / count if count else math.nan for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]


def summarise(values: Sequence[float], reason: str) -> Measured:
    """Mean over the views that can be scored, and how many cannot be, and why."""
    scored = [value for value in values if not math.isnan(value)]
    mean = math.fsum(scored) / len(scored) if scored else math.nan
    missing = len(values) - len(scored)
    note = f"{missing} of {len(values)} views are not scored: {reason}" if missing else ""
    return Measured(mean, tuple(values), note if values else "there are no held-out views")


def unscored(reason: str) -> Measured:
    """A metric that cannot be scored at all."""
    return Measured(math.nan, (), reason)


MIN_STEP = 1e-4
"""Steps between unit vectors that are shorter than this have no direction: what is left of them is rounding."""

NO_STEP = "the two pictures have the same embedding, and a step of no length has no direction"

Embeddings = Float[Tensor, "n dimensions"]
Embedding = Float[Tensor, " dimensions"]


def feature_similarity(first: Embeddings, second: Embeddings) -> Measured:
    """Cosine of the embeddings of two pictures, view by view, in [-1, 1]."""
    return summarise((first.double() * second.double()).sum(dim=1).tolist(), "")


def text_similarity(edited: Embeddings, text: Embedding) -> Measured:
    """cos(C(E), C(text)), view by view, in [-1, 1]."""
    return summarise((edited.double() @ text.double()).tolist(), "")


def clip_direction(edited: Embeddings, unedited: Embeddings, target: Embedding, source: Embedding) -> Measured:
    """cos(C(E) - C(B), C(target caption) - C(source caption)) (StyleGAN-NADA, Gal et al. 2021, arXiv 2108.00946).

    The sign is kept: an edit the wrong way is negative. A view in which nothing changed is NaN, not 0.
    """
    step = (target - source).double().expand(len(edited), -1)
    return summarise(_cosines((edited - unedited).double(), step), NO_STEP)


def frame_consistency(edited: Embeddings) -> Measured:
    """Mean cos(C(e_i), C(e_i+1)) of neighbouring frames (Gen-1, Esser et al. 2023, arXiv 2302.03011)."""
    return feature_similarity(edited[:-1], edited[1:])


def step_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean cos(C(o_i+1) - C(o_i), C(e_i+1) - C(e_i)): does the edited scene change along the path as the source does.

    Instruct-NeRF2NeRF (arXiv 2303.12789), appendix C, as issue 28 of its repository reads it. Doing nothing scores 1.
    """
    return summarise(_cosines(unedited.diff(dim=0).double(), edited.diff(dim=0).double()), NO_STEP)


def edit_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean cos(C(e_i) - C(o_i), C(e_i+1) - C(o_i+1)): is it the same edit in neighbouring frames.

    Instruct-NeRF2NeRF (arXiv 2303.12789), appendix C, as issue 91 of its repository reads it, beside the other. Doing
    nothing is NaN.
    """
    steps = (edited - unedited).double()
    return summarise(_cosines(steps[:-1], steps[1:]), NO_STEP)


def typeset_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean (C(e_i) - C(o_i)) . (C(e_i+1) - C(e_i)), as appendix C of arXiv 2303.12789 is printed.

    Issue 28 of its repository calls the formula a writing error. Doing nothing scores 0.
    """
    steps = (edited - unedited).double()
    return summarise((steps[:-1] * edited.diff(dim=0).double()).sum(dim=1).tolist(), "")


def _cosines(first: Tensor, second: Tensor) -> list[float]:
    """Cosine of each pair of rows; NaN where one of them has no length."""
    lengths = torch.stack([first.norm(dim=1), second.norm(dim=1)])
    products = (first * second).sum(dim=1) / lengths.prod(dim=0).clamp_min(1e-30)
    has_direction = (lengths > MIN_STEP).all(dim=0)
    return [
        value if is_defined else math.nan
        for value, is_defined in zip(products.tolist(), has_direction.tolist(), strict=True)
    ]


DEPTH_TOLERANCE = 0.02
"""A point is seen in the other view if the depths there differ by less than this share."""


def disagreement(
    images: Float[Tensor, "n 3 h w"],
    depths: Float[Tensor, "n h w"],
    cameras: Cameras,
    *,
    regions: Float[Tensor, "n h w"] | None = None,
) -> float:
    """Mean absolute difference, in [0, 1], between neighboring views at the surface points that both see.

    Matte surfaces give 0 up to interpolation. NaN where no point is seen twice. `depths` hold z in the camera frame of
    what each pixel shows; only points inside of `regions`, where they are 1, are compared.
    """
    total, count = 0.0, 0
    for first, second in _neighbours(cameras):
        found = _matched(depths, cameras, first, second)
        is_seen = found.is_seen if regions is None else found.is_seen & (regions[first] > 0.5)
        other = functional.grid_sample(images[second][None], found.grid[None], align_corners=False)[0]
        errors = (images[first] - other).abs().mean(dim=0)[is_seen]
        total, count = total + float(errors.double().sum()), count + len(errors)
    return total / count if count else math.nan


class _Matched(NamedTuple):
    """Places of one view's pixels in another view."""

    grid: Float[Tensor, "h w 2"]
    is_seen: Tensor


def _matched(depths: Float[Tensor, "n h w"], cameras: Cameras, first: int, second: int) -> _Matched:
    height, width = cameras.height, cameras.width
    is_finite = torch.isfinite(depths[first])
    points = unproject_depth(depths[first].nan_to_num(1.0, 1.0, 1.0), cameras[first])
    seen = project_points(points.reshape(-1, 3), cameras[second])
    pixels = seen.pixels.reshape(height, width, 2)
    grid = 2 * pixels / torch.tensor([width, height]) - 1
    # The nearest depth: a mean of depths over an edge is the depth of nothing.
    there = functional.grid_sample(
        depths[second].nan_to_num(0.0, 0.0, 0.0)[None, None], grid[None], mode="nearest", align_corners=False
    )[0, 0]
    own = seen.depths.reshape(height, width)
    is_same = (there - own).abs() < DEPTH_TOLERANCE * own.clamp_min(1e-6)
    return _Matched(grid, is_finite & (own > 0) & (grid.abs() < 1).all(dim=-1) & is_same)


def _neighbours(cameras: Cameras) -> list[tuple[int, int]]:
    """Each view with the one whose camera stands nearest."""
    distances = torch.cdist(cameras.positions, cameras.positions)
    distances.fill_diagonal_(math.inf)
    return [(index, int(distances[index].argmin())) for index in range(len(cameras))] if len(cameras) > 1 else []
