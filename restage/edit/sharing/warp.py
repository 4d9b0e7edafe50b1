"""Carries pictures from one view to another by rendered depth, and says which pixels both views see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.scenes.rasterize import rasterize_numba
from restage.scenes.splats import Splats

__all__ = ["DepthMaps", "Warped", "render_depths", "warp"]

MIN_ALPHA = 0.5
"""Where a view shows less than this of any splat, it has no depth."""


@dataclass(frozen=True)
class DepthMaps:
    """Depth of each view of a scene."""

    cameras: Cameras
    depths: Float[Tensor, "n h w"]
    """z in the camera frame, in world units; infinite where nothing is seen."""


class Warped(NamedTuple):
    """A picture as another view would show it."""

    image: Float[Tensor, "3 h w"]
    visible: Float[Tensor, "h w"]
    """1 where both views see the same point, else 0."""


@torch.no_grad()
def render_depths(splats: Splats, cameras: Cameras) -> DepthMaps:
    """Render the expected depth of every view."""
    maps = []
    for view in range(len(cameras)):
        rendering = rasterize_numba(splats.detach(), cameras[view])
        maps.append(torch.where(rendering.alpha > MIN_ALPHA, rendering.depth, torch.inf))
    return DepthMaps(cameras, torch.stack(maps))


def warp(
    image: Float[Tensor, "3 h w"], maps: DepthMaps, *, source: int, target: int, tolerance: float = 0.03
) -> Warped:
    """Look a source view's picture up at the points that the target view shows.

    A point counts as seen by the source where its depth there differs from the source's own by at most the share
    `tolerance`.
    """
    height, width = image.shape[1:]
    points = unproject_depth(maps.depths[target], maps.cameras[target]).reshape(-1, 3)
    is_known = torch.isfinite(points).all(dim=1)
    projected = project_points(torch.where(is_known[:, None], points, 0.0), maps.cameras[source])
    grid = projected.pixels / torch.tensor([width, height]) * 2 - 1
    is_inside = is_known & (projected.depths > 0) & (grid.abs() <= 1).all(dim=1)
    # Outside of [-1, 1], so that nothing behind the camera is looked up by accident.
    grid = torch.where(is_inside[:, None], grid, 2.0).reshape(1, height, width, 2)
    own = torch.where(torch.isfinite(maps.depths[source]), maps.depths[source], -1.0)
    # The nearest depth and no mean of two: between a thing and its background there is no surface.
    depth = functional.grid_sample(own[None, None], grid, mode="nearest", align_corners=False)[0, 0]
    colors = functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    expected = projected.depths.reshape(height, width)
    is_seen = is_inside.reshape(height, width) & ((depth - expected).abs() <= tolerance * expected)
    return Warped(colors, is_seen.float())
