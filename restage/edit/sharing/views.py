"""Which views of a joint edit are key views at a denoising step, and where other views find their points again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras

__all__ = ["ViewSharing", "fundamental_matrix", "near_epipolar_lines"]


@dataclass(frozen=True)
class ViewSharing:
    """Views in groups of neighbors; at each step one view of each group, drawn anew, is a key view."""

    cameras: Cameras
    """Of the views, in the order of the batch."""
    group_size: int
    """Views for each key view."""
    seed: int
    epipolar_reach: float = 1.0
    """Tokens of a key view farther from the epipolar line than this, in tokens, are no match."""

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.epipolar_reach <= 0:
            raise InputError(
                f"expected group_size >= 1 and epipolar_reach > 0, got {self.group_size} and {self.epipolar_reach}"
            )

    def keys_at(self, step: int) -> list[int]:
        """Key views of a step, ascending: one of each group of views that follow each other."""
        generator = np.random.default_rng(derive_seed(self.seed, "key views", step))
        # Drawn anew at every step, so that no view's own errors are handed to all others throughout.
        starts = range(0, len(self.cameras), self.group_size)
        ends = [min(start + self.group_size, len(self.cameras)) for start in starts]
        return [int(generator.integers(start, end)) for start, end in zip(starts, ends, strict=True)]

    def nearest_keys(self, view: int, keys: Sequence[int]) -> list[tuple[float, int]]:
        """Weight and place among `keys` of the two nearest by position; the nearer weighs more, both add up to 1."""
        positions = self.cameras.positions
        distances = [float((positions[key] - positions[view]).norm()) for key in keys]
        first, *rest = sorted(range(len(keys)), key=distances.__getitem__)[:2]
        if not rest:
            return [(1.0, first)]
        total = distances[first] + distances[rest[0]]
        share = distances[rest[0]] / total if total > 0 else 1.0
        return [(share, first), (1 - share, rest[0])]


def fundamental_matrix(cameras: Cameras) -> Float[Tensor, "3 3"]:
    """F of two cameras: a point x of the first lies on the line `F x` of the second (`x'^T F x = 0`), in pixels."""
    to_second = cameras.world_to_camera[1].double() @ cameras.camera_to_world[0].double()
    x, y, z = to_second[:3, 3].tolist()
    # In double precision: K^-T [t]x R K^-1 multiplies numbers of very different size.
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
    # The epipole itself has no line, and nothing can be said about its match.
    is_line = lines[:, :2].norm(dim=1, keepdim=True) > 1e-9
    return is_line & (distances <= reach)
