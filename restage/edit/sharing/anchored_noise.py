"""Noise that belongs to the surfaces of a scene: views that show the same point start from the same noise there.

`restage.py` hands it to editors in place of noise keys; they draw it on the grid of their latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.sharing.warp import DepthMaps
from restage.records import derive_seed
from restage.scenes.cameras import unproject_depth
from restage.scenes.initial import surroundings_of

__all__ = ["AnchoredNoise"]

CELLS_PER_PIXEL = 4.0
"""Edge of a pixel of the latents, where the cameras look, in cells."""
SKY_DISTANCE = 8.0
"""Where nothing is seen, noise belongs to points this far away, in scene sizes."""


@dataclass(frozen=True)
class AnchoredNoise:
    """Unit noise for views of one scene, from cells of its space.

    The scene's space is cut into cells, and each has a normal number for each channel, from the seed and its place
    alone. A view's pixels, unprojected by depth, say which cells a pixel of the latents covers; a cell that several
    cover belongs to the one that covers most of it, so that no two share one. A pixel's noise is the sum over its
    cells, divided by the square root of their number; one that is left without a cell gets a number of its own. Thus,
    for any depth, **the noise of a view is exactly standard normal and independent between its pixels and channels**:
    disjoint sums of independent normal numbers. Between views, the covariance of two pixels is the number of cells
    that they share over the root of the product of their counts: 1 for the same cells, 0 for none. The idea of noise as
    an integral over finer noise is that of Chang et al. 2024 (arXiv 2504.03072), who carry it along optical flow.
    """

    maps: DepthMaps
    """Of the views, in the order of the batch that is edited."""

    def draw(self, shape: Sequence[int], seed: int) -> Float[Tensor, "n c h w"]:
        """Noise for each view on a grid of `shape` (c, h, w)."""
        cells = _cells_of(self.maps, shape[1])
        return torch.stack([_draw_view(view, shape, seed, number) for number, view in enumerate(cells)])


def _cells_of(maps: DepthMaps, grid_height: int) -> np.ndarray:
    """Cell of every pixel of every view, as whole numbers "n h w 4": a level of size and three coordinates.

    Cells are as wide as a share of a latent's pixel at the distance that the cameras look at; farther than a scene's
    size from its center, where a pixel covers more, they double with the distance. The size depends on the place alone.
    """
    cameras, surroundings = maps.cameras, surroundings_of(maps.cameras)
    pixel = cameras.height / grid_height * surroundings.size / float(cameras.intrinsics[0, 1, 1])
    depths = torch.where(torch.isfinite(maps.depths), maps.depths, SKY_DISTANCE * surroundings.size)
    points = torch.stack([unproject_depth(depth, cameras[view]) for view, depth in enumerate(depths)]).double()
    offsets = points - surroundings.center
    level = torch.log2((offsets.norm(dim=-1, keepdim=True) / surroundings.size).clamp_min(1.0)).floor()
    size = pixel / CELLS_PER_PIXEL * 2.0**level
    return torch.cat([level, torch.floor(offsets / size)], dim=-1).long().numpy()


def _draw_view(cells: np.ndarray, shape: Sequence[int], seed: int, number: int) -> Float[Tensor, "c h w"]:
    channels, height, width = shape
    rows = np.arange(cells.shape[0]) * height // cells.shape[0]
    columns = np.arange(cells.shape[1]) * width // cells.shape[1]
    pixels = (rows[:, None] * width + columns).reshape(-1)
    known, cell = np.unique(cells.reshape(-1, 4), axis=0, return_inverse=True)
    pairs, counts = np.unique(cell.reshape(-1) * (height * width) + pixels, return_counts=True)
    # Each cell goes to one pixel only: shared ones would make neighbors' noise correlated.
    by_count = np.lexsort((pairs, -counts))
    _, first = np.unique(pairs[by_count] // (height * width), return_index=True)  # a cell's pixel that covers most
    owners = pairs[by_count][first] % (height * width)
    sums, sizes = np.zeros((height * width, channels)), np.bincount(owners, minlength=height * width)
    np.add.at(sums, owners, _cell_noise(known, channels, seed))
    # Dividing a sum of k normal numbers by sqrt(k) keeps the variance at 1, however many cells a pixel has.
    own = np.random.default_rng(derive_seed(seed, "own noise", number)).standard_normal((height * width, channels))
    noise = np.where(sizes[:, None] > 0, sums / np.sqrt(np.maximum(sizes, 1))[:, None], own)
    return torch.from_numpy(noise.T.reshape(channels, height, width).astype(np.float32))


def _cell_noise(cells: np.ndarray, channels: int, seed: int) -> np.ndarray:
    """Normal numbers "cells channels" that depend on seed and cell alone: hashed to uniform numbers, two a number."""
    # Hashed and not drawn in order: a cell has the same number whichever cells a view shows beside it.
    with np.errstate(over="ignore"):
        keys = np.full(len(cells), derive_seed(seed, "cells") % 2**63, dtype=np.uint64)
        for column in cells.astype(np.uint64).T:
            keys = _mix(keys ^ _mix(column + np.uint64(0x9E3779B97F4A7C15)))
        draws = [_mix(keys + np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)) for step in range(1, 2 * channels + 1)]
    uniform = (np.stack(draws, axis=1) >> np.uint64(11)).astype(np.float64) / 2.0**53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :channels]))  # Box and Muller
    return radius * np.cos(2 * math.pi * uniform[:, channels:])


def _mix(keys: np.ndarray) -> np.ndarray:
    """Finalizer of splitmix64 (Steele et al. 2014), a bijection whose bits look random."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
