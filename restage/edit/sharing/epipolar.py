"""Where a point of one view can be in another: on its epipolar line."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from restage.scenes.cameras import Cameras

__all__ = ["fundamental_matrix", "near_epipolar_lines"]


def fundamental_matrix(cameras: Cameras) -> Float[Tensor, "3 3"]:
    """F of two cameras: a point x of the first lies on the line `F x` of the second (`x'^T F x = 0`), in pixels."""
    to_second = cameras.world_to_camera[1].double() @ cameras.camera_to_world[0].double()
    x, y, z = to_second[:3, 3].tolist()
    crossed = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(cameras.intrinsics.double())
    return (inverse[1].T @ crossed @ to_second[:3, :3] @ inverse[0]).float()


def near_epipolar_lines(cameras: Cameras, *, reach: float) -> Bool[Tensor, "pixels pixels"]:
    """Which pixels of the second camera lie within `reach` pixels of the epipolar line of each pixel of the first.

    Pixels are counted row by row. Cameras at one place have no such lines, and no pixel is near.
    """
    rows = torch.arange(cameras.height) + 0.5
    columns = torch.arange(cameras.width) + 0.5
    grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1).reshape(-1, 3)
    lines = pixels @ fundamental_matrix(cameras).T
    distances = (lines @ pixels.T).abs() / lines[:, :2].norm(dim=1, keepdim=True).clamp_min(1e-12)
    is_line = lines[:, :2].norm(dim=1, keepdim=True) > 1e-9
    return is_line & (distances <= reach)
