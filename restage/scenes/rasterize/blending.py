"""What all rasterizers share: the result, the signature, the constants of the blending, and the final assembly."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.splats import Splats

__all__ = ["CLAMP_MARGIN", "CULL_MARGIN", "NEAR", "Rasterizer", "Rendering", "assemble", "check_inputs", "is_in_view"]
__all__ += ["slope_range"]

NEAR = 0.05
"""Splats nearer than this to the camera plane, in world units, are not drawn."""
CLAMP_MARGIN = 0.15
"""The slopes x/z and y/z in the Jacobian are clamped to the image plus this share of its side on each side."""
CULL_MARGIN = 0.25
"""Splats whose center lies further beside the image than this share of its side are not drawn."""


class Rendering(NamedTuple):
    """One rendered view."""

    color: Float[Tensor, "3 h w"]  # RGB over black; not clamped
    alpha: Float[Tensor, "h w"]  # share of the pixel that splats cover, in [0, 1)
    depth: Float[Tensor, "h w"]
    """Expected z of what covers the pixel, in world units; infinite where alpha is 0."""
    features: Float[Tensor, "c h w"]  # blended feature channels over 0; c may be 0


@runtime_checkable
class Rasterizer(Protocol):
    """Draws splats as one camera sees them, differentiable in the splats and the features."""

    def __call__(self, splats: Splats, cameras: Cameras, *, features: Float[Tensor, "n c"] | None = None) -> Rendering:
        """Render one camera (n = 1) over black, with extra channels `features`."""
        ...


def check_inputs(splats: Splats, cameras: Cameras, features: Tensor | None) -> None:
    """Refuse several cameras at once, and features that do not fit the splats."""
    if len(cameras) != 1:
        raise InputError(f"expected one camera, got {len(cameras)}; render views one at a time with cameras[i]")
    if features is not None and features.shape[0] != len(splats):
        raise InputError(f"expected features for {len(splats)} splats, got {features.shape[0]}")


def slope_range(cameras: Cameras, margin: float) -> tuple[float, float, float, float]:
    """Least and greatest x/z, least and greatest y/z on the image widened by `margin` of its side on each side."""
    focal_x, focal_y = float(cameras.intrinsics[0, 0, 0]), float(cameras.intrinsics[0, 1, 1])
    center_x, center_y = float(cameras.intrinsics[0, 0, 2]), float(cameras.intrinsics[0, 1, 2])
    width, height = cameras.width, cameras.height
    return (
        (-margin * width - center_x) / focal_x,
        ((1 + margin) * width - center_x) / focal_x,
        (-margin * height - center_y) / focal_y,
        ((1 + margin) * height - center_y) / focal_y,
    )


def is_in_view(in_camera: Float[Tensor, "n 3"], cameras: Cameras) -> Bool[Tensor, " n"]:
    """Which centers (camera axes) are far enough in front of the camera and not too far beside its image."""
    x, y, z = in_camera.detach().unbind(1)
    left, right, top, bottom = slope_range(cameras, CULL_MARGIN)
    return (z >= NEAR) & (x >= left * z) & (x <= right * z) & (y >= top * z) & (y <= bottom * z)


def assemble(blended: Float[Tensor, "c h w"], alpha: Float[Tensor, "h w"]) -> Rendering:
    """Put expected depth to blended channels, which are RGB, z, then features."""
    is_hit = alpha > 0
    depth = torch.where(is_hit, blended[3] / torch.where(is_hit, alpha, 1.0), torch.inf)
    return Rendering(blended[:3], alpha, depth, blended[4:])
