"""Finds floaters and haze: splats that belong to no surface, and that the photographs do without.

What is found is a region like any other, to be looked at and deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from restage.regions.masks import mean_shown
from restage.scenes.cameras import project_points
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.rasterize import rasterize, splat_weights
from restage.scenes.splats import SH_C0, Splats

__all__ = ["CleanConfig", "Found", "draw_found", "find_floaters"]

NEIGHBORS = 6
FOUND_COLOR = (1.0, 0.0, 0.3)


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """What counts as a floater or haze."""

    faint: float = 0.02
    """Splats of a lower opacity cannot be seen."""
    haze_opacity: float = 0.15
    """Haze is fainter than this,"""
    haze_size: float = 4.0
    """and larger than so many times the median splat at its distance from the cameras."""
    before_share: float = 0.8
    """Nearer to a camera than this share of the depth that its view shows, a splat is before all surfaces;"""
    max_on_surface: float = 0.1
    """it floats where it is on or behind a surface in no more than this share of the views that could show it."""
    isolation: float = 4.0
    """Splats float, too, whose neighbors are farther away than so many times their own size,"""
    min_views: int = 3
    """or which fewer views show."""
    slack: float = 0.0005
    """Splats are kept where the photographs come out worse without them, by more than this in [0, 1]."""


class Found(NamedTuple):
    """What is to be cleaned up."""

    is_found: Bool[Tensor, " n"]
    counts: dict[str, int]
    """Splats by the reason that they were found for, and `kept` for those that the photographs need."""


@torch.no_grad()
def find_floaters(splats: Splats, capture: Capture, config: CleanConfig | None = None) -> Found:
    """Find floaters and haze by the training views of a capture; held-out views are never looked at."""
    config, train = config or CleanConfig(), capture.select(capture.train_indices)
    opacity, sizes = splats.opacity_logits.sigmoid(), splats.log_scales.amax(dim=1).exp()
    seen = _seen(splats, train, config)
    usual = (sizes / seen.distance)[seen.num_views > 0].median() * seen.distance
    points = splats.means.double().cpu().numpy()
    away, _ = KDTree(points).query(points, k=min(NEIGHBORS + 1, len(points)))
    spacing = torch.from_numpy(np.reshape(away, (len(points), -1))[:, -1])
    reasons = {
        "faint": opacity < config.faint,
        "haze": (opacity < config.haze_opacity) & (sizes > config.haze_size * usual),
        "floating": (seen.on_surface <= config.max_on_surface) & (seen.num_framed >= config.min_views),
        "isolated": spacing.to(sizes) > config.isolation * sizes,
        "seen by few": (seen.num_views < config.min_views) & (seen.num_framed >= 2 * config.min_views),
    }
    suspects = torch.stack(list(reasons.values())).any(dim=0)
    # Whatever a splat looks like, it stays if the photographs say that something is there.
    with_them = (render_views(splats, train.cameras) - train.images).abs().mean(dim=1)
    without = (render_views(splats[~suspects], train.cameras) - train.images).abs().mean(dim=1)
    harm = without - with_them
    if train.masks is not None:  # what the photographs do not show needs no splats
        harm = harm * train.masks
    harm = mean_shown(splats, train.cameras, harm)
    found = suspects & (harm <= config.slack)
    counts = {name: int((of_reason & found).sum()) for name, of_reason in reasons.items()}
    return Found(found, {**counts, "kept": int((suspects & ~found).sum())})


class _Seen(NamedTuple):
    num_framed: Float[Tensor, " n"]  # views whose frame each splat's center lies in
    num_views: Float[Tensor, " n"]  # views that show something of it
    on_surface: Float[Tensor, " n"]  # share of the first at whose surface it is, or behind it
    distance: Float[Tensor, " n"]  # mean z in these views, in world units


def _seen(splats: Splats, train: Capture, config: CleanConfig) -> _Seen:
    cameras = train.cameras
    num_framed, num_views, on_surface, distance = splats.means.new_zeros(4, len(splats))
    nothing = splats.means.new_zeros(0, cameras.height, cameras.width)
    for view in range(len(cameras)):
        rendering = rasterize(splats, cameras[view])
        pixels, depths = project_points(splats.means, cameras[view])
        column, row = pixels.floor().nan_to_num(-1, -1, -1).clamp(-1, 1e6).long().unbind(1)
        is_framed = (depths > 0) & (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        surface = rendering.depth[row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)]
        num_framed += is_framed
        on_surface += is_framed & (depths > config.before_share * surface)
        distance += torch.where(is_framed, depths, 0.0)
        num_views += splat_weights(splats, cameras[view], nothing)[1] > 0.05
    framed = num_framed.clamp_min(1)
    mean = torch.where(num_framed > 0, distance / framed, distance.sum() / num_framed.sum().clamp_min(1))
    return _Seen(num_framed, num_views, on_surface / framed, mean)


def draw_found(splats: Splats, found: Found, capture: Capture, *, num_views: int = 3) -> Float[Tensor, "3 h w"]:
    """Draw a few views side by side: as they are above, what was found in red below, without it at the bottom."""
    step = max(1, len(capture.cameras) // num_views)
    cameras = capture.cameras[list(range(0, len(capture.cameras), step))[:num_views]]
    marked = splats.clone()
    marked.sh[found.is_found] = 0
    marked.sh[found.is_found, 0] = (splats.sh.new_tensor(FOUND_COLOR) - 0.5) / SH_C0
    # What is faint could not be seen in red either.
    marked.opacity_logits[found.is_found] = marked.opacity_logits[found.is_found].clamp_min(0.0)
    rows = (splats, marked, splats[~found.is_found])
    return torch.cat([torch.cat(list(render_views(row, cameras)), dim=2) for row in rows], dim=1)
