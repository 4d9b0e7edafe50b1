"""Regions by place and color alone: boxes, balls, half spaces, ranges of color."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from restage.records import InputError
from restage.regions.masks import in_box
from restage.regions.region import Region
from restage.scenes.splats import SH_C0, Splats

__all__ = ["region_in_ball", "region_in_box", "region_of_color", "region_beyond_plane"]


def region_in_box(splats: Splats, low: Sequence[float], high: Sequence[float]) -> Region:
    """Make the region of the splats whose centers lie in a box along the world's axes."""
    if not all(a < b for a, b in zip(low, high, strict=True)):
        raise InputError(f"expected the lower corner first, got {list(low)} and {list(high)}")
    return _region(splats, in_box(splats, torch.tensor(low), torch.tensor(high)), by="box", low=low, high=high)


def region_in_ball(splats: Splats, center: Sequence[float], radius: float) -> Region:
    """Make the region of the splats whose centers lie within a radius of a point, in world units."""
    distances = (splats.means.detach() - torch.tensor(list(center)).to(splats.means)).norm(dim=1)
    return _region(splats, distances <= radius, by="sphere", center=center, radius=radius)


def region_beyond_plane(splats: Splats, normal: Sequence[float], offset: float) -> Region:
    """Make the region of the splats whose centers lie where normal . center >= offset."""
    if not any(normal):
        raise InputError("expected a plane's normal that is not 0")
    heights = splats.means.detach() @ torch.tensor(list(normal)).to(splats.means)
    return _region(splats, heights >= offset, by="plane", normal=normal, offset=offset)


def region_of_color(splats: Splats, color: Sequence[float], tolerance: float) -> Region:
    """Make the region of the splats whose color, RGB in [0, 1], differs by at most a tolerance in every channel."""
    colors = (0.5 + SH_C0 * splats.sh[:, 0].detach()).clamp(0, 1)
    differences = (colors - torch.tensor(list(color)).to(colors)).abs().amax(dim=1)
    return _region(splats, differences <= tolerance, by="color", color=color, tolerance=tolerance)


def _region(splats: Splats, chosen: Tensor, **made: object) -> Region:
    plain = {name: list(value) if isinstance(value, list | tuple) else value for name, value in made.items()}
    if not bool(chosen.any()):
        raise InputError(f"no splat lies there: {plain}")
    return Region.of(splats, chosen.float(), **plain)
