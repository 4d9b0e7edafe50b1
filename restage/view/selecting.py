"""What a gesture in the viewer's window means: splats that are to be seen inside of a shape, as a region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from restage.records import InputError
from restage.regions.region import Region
from restage.scenes.cameras import Cameras, project_points
from restage.scenes.rasterize import rasterize
from restage.scenes.splats import Splats

__all__ = ["Point", "polygon_mask", "region_in_mask", "region_size", "stroke_mask"]

REACH = 2.0
"""Splats are seen as far behind a surface as this many of their standard deviations."""
SLACK = 0.02
"""Share of its depth that a surface may be thick."""

Point = tuple[float, float]
"""Across and down in a window, in shares of its width and height."""


def polygon_mask(camera: Cameras, corners: Sequence[Point]) -> Float[Tensor, "h w"]:
    """1 inside of a polygon in the picture of a camera (n = 1), 0 outside."""
    if len(corners) < 3:
        raise InputError(f"expected a shape of three corners or more, got {len(corners)}")
    drawn = Image.new("L", (camera.width, camera.height))
    pixels = [(x * camera.width, y * camera.height) for x, y in corners]
    ImageDraw.Draw(drawn).polygon(pixels, fill=1)
    return torch.from_numpy(np.array(drawn, np.float32))


def stroke_mask(camera: Cameras, path: Sequence[Point], radius: float) -> Float[Tensor, "h w"]:
    """1 within a radius, in shares of the height, around a path (or one point) in the picture of a camera (n = 1)."""
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1)
    corners = torch.tensor(path) * torch.tensor([camera.width, camera.height])
    nearest = torch.full((camera.height, camera.width), torch.inf)
    for start, end in zip(corners, [*corners[1:], corners[-1]], strict=True):
        along = end - start
        share = ((pixels - start) @ along / (along @ along).clamp_min(1e-9)).clamp(0, 1)
        nearest = torch.minimum(nearest, (pixels - start - share[..., None] * along).norm(dim=-1))
    return (nearest <= max(radius * camera.height, 0.5)).float()


@torch.no_grad()
def region_in_mask(splats: Splats, camera: Cameras, mask: Float[Tensor, "h w"], by: str) -> Region:
    """The splats whose centers lie in a mask, without those behind what the picture shows there."""
    surface = rasterize(splats.detach(), camera).depth.cpu()
    pixels, depths = project_points(splats.means.detach().cpu(), camera)
    column, row = pixels.floor().nan_to_num(-1).long().unbind(1)
    chosen = (depths > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    column, row = column.clamp(0, camera.width - 1), row.clamp(0, camera.height - 1)
    reach = REACH * splats.log_scales.detach().amax(dim=1).exp().cpu()
    chosen &= (mask[row, column] > 0) & (depths <= surface[row, column] + reach + SLACK * depths)
    if not bool(chosen.any()):
        raise InputError("there are no splats; click or draw on something")
    pose = [[round(value, 6) for value in row] for row in camera.camera_to_world[0].tolist()]
    return Region.of(splats, chosen.float(), by=by, camera_to_world=pose)


def region_size(splats: Splats, region: Region) -> float:
    """Distance within which nine tenths of a region's splats lie around its middle, in world units."""
    means = splats.means[region.inside.to(splats.means.device)]
    return float((means - means.median(dim=0).values).norm(dim=1).quantile(0.9).clamp_min(1e-6))
