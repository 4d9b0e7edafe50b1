"""How well pictures of one scene agree with each other: the same surface point, seen in two views, has one colour."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.scenes.cameras import Cameras, project_points, unproject_depth

__all__ = ["disagreement"]

DEPTH_TOLERANCE = 0.02
"""A point is seen in the other view if the depths there differ by less than this share."""


def disagreement(
    images: Float[Tensor, "n 3 h w"],
    depths: Float[Tensor, "n h w"],
    cameras: Cameras,
    *,
    regions: Float[Tensor, "n h w"] | None = None,
) -> float:
    """Mean absolute difference, in [0, 1], between neighbouring views at the surface points that both see.

    Matte surfaces give 0 up to interpolation. NaN where no point is seen twice.

    Args:
        images: RGB in [0, 1].
        depths: z in the camera frame of what each pixel shows, world units.
        cameras: One for each view.
        regions: Only points inside are compared, 1 = inside; None for all.
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
