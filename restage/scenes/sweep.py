"""Points of a scene by plane sweep: where neighboring views agree in depth. `initial.py` puts splats there.

Each training view is compared with its neighbors, warped by one depth after another, in small windows (Collins, "A
space-sweep approach to true multi-image matching", 1996); what several views then see at one depth is kept.
"""

# pyright: reportCallIssue=false
# (numba's decorators hide the signatures of compiled functions)
from __future__ import annotations

from typing import NamedTuple, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.scenes.capture import Capture

__all__ = ["SweptPoints", "swept_points"]

MAX_VIEWS = 48
"""Views that are compared, evenly chosen by their order; more of them cost time and add little."""
SIDE = 128
"""Longer side in pixels at which views are compared."""
NEIGHBORS = 4
NUM_DEPTHS = 72
NEAR, FAR = 0.35, 20.0
"""Depths that are tried, in scene sizes; evenly spaced in their inverse, and so on the pictures."""
BEST_ANGLE_RAD = 0.2
"""Angle between two cameras, as the scene's center sees them, at which depth is told well and windows still match."""
RADIUS = np.int64(2)
"""Windows reach so many pixels to each side."""
MIN_SPREAD = 0.015
"""Standard deviation of a window's brightness below which it matches anything."""
MIN_SIMILARITY = 0.6
TOLERANCE = 1.5
"""Steps of inverse depth by which two views may differ."""
MIN_AGREEING = 2
"""Neighbors that must see a point at the depth at which they have it themselves."""


class SweptPoints(NamedTuple):
    """Colored points."""

    positions: Float[Tensor, "m 3"]
    colors: Float[Tensor, "m 3"]  # RGB in [0, 1]


def swept_points(train: Capture, center: Float[Tensor, " 3"], size: float) -> SweptPoints:
    """Points that several of the views agree on, with their colors; `center` and `size` as `surroundings_of` has them.

    Few or none where the views are too few, too far apart or without texture.
    """
    num_views = len(train.cameras)
    if num_views < 1 + MIN_AGREEING:
        return SweptPoints(torch.zeros(0, 3), torch.zeros(0, 3))
    chosen = [index * num_views // min(num_views, MAX_VIEWS) for index in range(min(num_views, MAX_VIEWS))]
    cameras = train.cameras[chosen]
    scale = min(1.0, SIDE / max(cameras.width, cameras.height))
    width, height = (max(1, round(scale * side)) for side in (cameras.width, cameras.height))
    small = cameras.to_size(width=width, height=height)
    images = torch.stack([_shrink(image, height, width) for image in train.images[chosen]])
    neighbors = _neighbors(cameras, center)
    inverse_depths = torch.linspace(1 / FAR, 1 / NEAR, NUM_DEPTHS) / size
    found = _sweep(
        images.mean(1).numpy(),
        neighbors.numpy(),
        *(a.numpy() for a in _warps(small, neighbors)),
        inverse_depths.numpy(),
    )
    step = float(inverse_depths[1] - inverse_depths[0])
    depths = torch.from_numpy(found)
    if train.masks is not None:
        for view, mask in enumerate(train.masks[chosen]):
            depths[view][_shrink(mask[None], height, width)[0] < 1] = torch.nan
    positions, colors, footprints = [], [], []
    for view in range(len(cameras)):
        points = unproject_depth(1 / depths[view], small[view]).reshape(-1, 3)
        kept = torch.isfinite(points).all(1).nonzero()[:, 0]
        agreeing = sum(_agrees(points[kept], small[int(other)], depths[other], step) for other in neighbors[view])
        kept = kept[agreeing >= min(MIN_AGREEING, len(neighbors[view]))]
        positions.append(points[kept])
        colors.append(images[view].flatten(1).T[kept])
        footprints.append(1 / (depths[view].flatten()[kept] * small.intrinsics[view, 0, 0]))
    kept = _one_each_cell(torch.cat(positions), torch.cat(footprints))
    return SweptPoints(torch.cat(positions)[kept], torch.cat(colors)[kept])


def _one_each_cell(points: Tensor, footprints: Tensor) -> Tensor:
    """Indices of points of which no two share a cell about as wide as a pixel there.

    Otherwise what all views see would get many times the points of what one or two see.
    """
    levels = footprints.clamp_min(1e-12).log2().ceil()
    cells = torch.cat([(points / levels.exp2()[:, None]).floor(), levels[:, None]], dim=1).long()
    _, cell_of = torch.unique(cells, dim=0, return_inverse=True)
    order = torch.argsort(cell_of, stable=True)
    is_first = torch.ones(len(order), dtype=torch.bool)
    is_first[1:] = cell_of[order][1:] != cell_of[order][:-1]
    return order[is_first].sort().values


def _shrink(image: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(image[None], size=(height, width), mode="area")[0]


def _neighbors(cameras: Cameras, center: Tensor) -> Tensor:
    """The views to compare each view with: those that look the same way, from an angle near the best."""
    toward = torch.nn.functional.normalize(cameras.positions - center, dim=1)
    forward = cameras.camera_to_world[:, :3, 2]
    angles = (toward @ toward.T).clamp(-1, 1).acos()
    turns = (forward @ forward.T).clamp(-1, 1).acos()
    costs = (angles.clamp_min(1e-3) / BEST_ANGLE_RAD).log().abs() + turns
    costs.fill_diagonal_(torch.inf)
    return costs.argsort(dim=1, stable=True)[:, : min(NEIGHBORS, len(cameras) - 1)]


def _warps(cameras: Cameras, neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """A "n k 3 3" and b "n k 3": pixel p of a view at inverse depth q is seen by a neighbor at A p + q b."""
    world_to_camera, inverse = cameras.world_to_camera.double(), torch.linalg.inv(cameras.intrinsics.double())
    relative = world_to_camera[neighbors] @ cameras.camera_to_world.double()[:, None]
    lenses = cameras.intrinsics.double()[neighbors]
    warps = lenses @ relative[..., :3, :3] @ inverse[:, None]
    return warps.float(), (lenses @ relative[..., :3, 3:])[..., 0].float()


def _agrees(points: Tensor, camera: Cameras, inverse_depths: Tensor, step: float) -> Tensor:
    """Whether a view has points at the depth at which it would see them."""
    pixels, depths = project_points(points, camera)
    columns, rows = pixels.floor().long().unbind(1)
    is_inside = (depths > 0) & (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    own = inverse_depths[rows.clamp(0, camera.height - 1), columns.clamp(0, camera.width - 1)]
    return is_inside & ((own - 1 / depths).abs() < TOLERANCE * step)


@numba.njit(cache=True)
@no_type_check
def _box(values, rows):
    """Sums over windows, in place of the values; those at the border are of what lies inside."""
    height, width = values.shape
    for row in range(height):
        for column in range(width):
            total = np.float32(0)
            for other in range(max(0, column - RADIUS), min(width, column + RADIUS + 1)):
                total += values[row, other]
            rows[row, column] = total
    for row in range(height):
        values[row] = 0
        for other in range(max(0, row - RADIUS), min(height, row + RADIUS + 1)):
            for column in range(width):
                values[row, column] += rows[other, column]


@numba.njit(cache=True)
@no_type_check
def _warp(image, warp, shift, inverse_depth, warped, inside):
    """A neighbor's brightness as a view would see it at one depth; 0, and 0 in `inside`, where it sees nothing."""
    height, width = image.shape
    for row in range(height):
        for column in range(width):
            x, y = np.float32(column + 0.5), np.float32(row + 0.5)
            depth = warp[2, 0] * x + warp[2, 1] * y + warp[2, 2] + inverse_depth * shift[2]
            warped[row, column] = inside[row, column] = 0
            if depth <= 1e-6:
                continue
            left = (warp[0, 0] * x + warp[0, 1] * y + warp[0, 2] + inverse_depth * shift[0]) / depth - np.float32(0.5)
            top = (warp[1, 0] * x + warp[1, 1] * y + warp[1, 2] + inverse_depth * shift[1]) / depth - np.float32(0.5)
            if not (0 <= left < width - 1 and 0 <= top < height - 1):
                continue
            i, j = int(top), int(left)
            a, b = top - np.float32(i), left - np.float32(j)
            upper = image[i, j] + b * (image[i, j + 1] - image[i, j])
            lower = image[i + 1, j] + b * (image[i + 1, j + 1] - image[i + 1, j])
            warped[row, column] = upper + a * (lower - upper)
            inside[row, column] = 1


@numba.njit(cache=True, parallel=True)
@no_type_check
def _sweep(images, neighbors, warps, shifts, inverse_depths):
    """Inverse depth of each pixel of each view, between the steps; NaN where none is clearly the best."""
    count, height, width = images.shape
    found = np.full((count, height, width), np.nan, np.float32)
    num_depths = len(inverse_depths)
    step = inverse_depths[1] - inverse_depths[0]
    area = np.float32((2 * RADIUS + 1) ** 2)
    for view in numba.prange(count):
        rows = np.empty((height, width), np.float32)
        own = images[view]
        mean, square = own.copy(), own * own
        _box(mean, rows)
        _box(square, rows)
        mean /= area
        spread = square / area - mean * mean
        warped, inside = np.empty_like(own), np.empty_like(own)
        scores = np.empty((num_depths, height, width), np.float32)
        for index in range(num_depths):
            best, second = np.full_like(own, -1), np.full_like(own, -1)
            for rank in range(neighbors.shape[1]):
                other = images[neighbors[view, rank]]
                _warp(other, warps[view, rank], shifts[view, rank], inverse_depths[index], warped, inside)
                squares, products = warped * warped, warped * own
                for values in (warped, squares, products, inside):
                    _box(values, rows)
                for row in range(height):
                    for column in range(width):
                        if inside[row, column] < area:
                            continue
                        other_mean = warped[row, column] / area
                        other_spread = squares[row, column] / area - other_mean * other_mean
                        both = products[row, column] / area - mean[row, column] * other_mean
                        scale = spread[row, column] * max(other_spread, np.float32(1e-6))
                        value = both / np.sqrt(max(scale, np.float32(1e-12)))
                        # The two neighbors that match best: others may be hidden there.
                        if value > best[row, column]:
                            second[row, column] = best[row, column]
                            best[row, column] = value
                        elif value > second[row, column]:
                            second[row, column] = value
            scores[index] = np.float32(0.5) * (best + second)
        for row in range(height):
            for column in range(width):
                values = scores[:, row, column]
                at = values.argmax()
                if spread[row, column] < MIN_SPREAD**2 or values[at] < MIN_SIMILARITY or at in (0, num_depths - 1):
                    continue
                before, after = values[at - 1], values[at + 1]
                bend = before - 2 * values[at] + after
                offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
                found[view, row, column] = inverse_depths[at] + offset * step
    return found
