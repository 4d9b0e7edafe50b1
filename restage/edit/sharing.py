"""What the views of a scene share while they are edited: depth, noise that is anchored in space, key views.

Pictures are carried from one view to another by rendered depth; noise belongs to the surfaces that views show;
attention is shared by key views, and other views find their points again near epipolar lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.scenes.initial import surroundings_of
from restage.scenes.layouts import splat_depths
from restage.scenes.splats import Splats

__all__ = ["AnchoredNoise", "CarriedNoise", "DepthMaps", "FrameSharing", "Sharing", "ViewLayout", "ViewSharing"]
__all__ += ["Warped", "fundamental_matrix", "near_epipolar_lines", "render_depths", "warp"]


@dataclass(frozen=True)
class DepthMaps:
    """Depth of each view of a scene."""

    cameras: Cameras
    depths: Float[Tensor, "n h w"]  # z in the camera frame, in world units; infinite where nothing is seen


@dataclass(frozen=True)
class ViewLayout:
    """What holds views that are painted anew: the depth of each, and some of them that all attend to."""

    depths: Float[Tensor, "n h w"]  # z in the camera frame, in world units; infinite where nothing is seen
    references: tuple[int, ...]
    """Places in the batch of the views that all attend to."""
    own_share: float = 0.6
    """Weight of a view's attention to itself; the reference views share the rest."""

    def __post_init__(self) -> None:
        if not self.references or not all(0 <= place < len(self.depths) for place in self.references):
            raise InputError(f"expected reference views out of {len(self.depths)}, got {self.references}")
        if not 0 <= self.own_share <= 1:
            raise InputError(f"expected own_share in [0, 1], got {self.own_share}")


class Warped(NamedTuple):
    """A picture as another view would show it."""

    image: Float[Tensor, "3 h w"]
    visible: Float[Tensor, "h w"]  # 1 where both views see the same point, else 0


def render_depths(splats: Splats, cameras: Cameras) -> DepthMaps:
    """Render the expected depth of every view."""
    return DepthMaps(cameras, splat_depths(splats, cameras))


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
    grid = projected.pixels / torch.tensor([width, height], device=image.device) * 2 - 1
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

    maps: DepthMaps  # of the views, in the order of the batch that is edited

    def draw(self, shape: Sequence[int], seed: int) -> Float[Tensor, "n c h w"]:
        """Noise for each view on a grid of `shape` (c, h, w)."""
        cells = _cells_of(self.maps, shape[1])
        return torch.stack([_draw_view(view, shape, seed, number) for number, view in enumerate(cells)])

    def select(self, places: Sequence[int]) -> AnchoredNoise:
        """That of some of the views."""
        return AnchoredNoise(DepthMaps(self.maps.cameras[places], self.maps.depths[places]))


@dataclass(frozen=True)
class CarriedNoise:
    """Unit noise for frames of a clip, whose grains go along with what the frames show; see `AnchoredNoise`.

    Each pixel of a frame has the number of a grain, and what is followed from frame to frame keeps its own: what was
    a cell of space there, for which depth must be known, is here a point of the clip.
    """

    grains: Int[Tensor, "n h w"]

    def draw(self, shape: Sequence[int], seed: int) -> Float[Tensor, "n c h w"]:
        """Noise for each frame on a grid of `shape` (c, h, w)."""
        cells = self.grains[..., None].cpu().numpy()
        return torch.stack([_draw_view(frame, shape, seed, number) for number, frame in enumerate(cells)])

    def select(self, places: Sequence[int]) -> CarriedNoise:
        """That of some of the frames."""
        return CarriedNoise(self.grains[list(places)])


def _cells_of(maps: DepthMaps, grid_height: int) -> np.ndarray:
    """Cell of every pixel of every view, as whole numbers "n h w 4": a level of size and three coordinates.

    Cells are as wide as a share of a latent's pixel at the distance that the cameras look at; farther than a scene's
    size from its center, where a pixel covers more, they double with the distance. The size depends on the place alone.
    """
    cameras, surroundings = maps.cameras, surroundings_of(maps.cameras)
    pixel = cameras.height / grid_height * surroundings.size / float(cameras.intrinsics[0, 1, 1])
    depths = maps.depths.cpu()
    depths = torch.where(torch.isfinite(depths), depths, SKY_DISTANCE * surroundings.size)
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
    known, cell = np.unique(cells.reshape(-1, cells.shape[-1]), axis=0, return_inverse=True)
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


@runtime_checkable
class Sharing(Protocol):
    """How the views of a batch attend to each other: in groups of neighbors, each with a key view."""

    @property
    def num_views(self) -> int:
        """Views of the batch."""
        ...

    def keys_at(self, step: int) -> list[int]:
        """Key views of a step, ascending: one of each group of views that follow each other."""
        ...

    def nearest_keys(self, view: int, keys: Sequence[int]) -> list[tuple[float, int]]:
        """Weight and place among `keys` of the two nearest; the nearer weighs more, both add up to 1."""
        ...


def _draw_keys(num_views: int, group_size: int, seed: int, step: int) -> list[int]:
    generator = np.random.default_rng(derive_seed(seed, "key views", step))
    # Drawn anew at every step, so that no view's own errors are handed to all others throughout.
    starts = range(0, num_views, group_size)
    ends = [min(start + group_size, num_views) for start in starts]
    return [int(generator.integers(start, end)) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class ViewSharing:
    """Views in groups of neighbors; at each step one view of each group, drawn anew, is a key view."""

    cameras: Cameras  # of the views, in the order of the batch
    group_size: int  # views for each key view
    seed: int
    epipolar_reach: float = 1.0
    """Tokens of a key view farther from the epipolar line than this, in tokens, are no match."""

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.epipolar_reach <= 0:
            raise InputError(
                f"expected group_size >= 1 and epipolar_reach > 0, got {self.group_size} and {self.epipolar_reach}"
            )

    @property
    def num_views(self) -> int:
        """Views of the batch."""
        return len(self.cameras)

    def keys_at(self, step: int) -> list[int]:
        """See `Sharing.keys_at`."""
        return _draw_keys(self.num_views, self.group_size, self.seed, step)

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


@dataclass(frozen=True)
class FrameSharing:
    """Frames of a clip that attend to each other; with groups of one, every frame attends to all.

    With larger groups the frames that are no key take over the outputs of key frames at the best match of features, as
    `ViewSharing` does; as there are no cameras, a match may be anywhere, and is looked for in what the model sees in
    the unedited frames at the same noise.
    """

    num_views: int
    group_size: int
    seed: int

    def keys_at(self, step: int) -> list[int]:
        """See `Sharing.keys_at`."""
        return _draw_keys(self.num_views, self.group_size, self.seed, step)

    def nearest_keys(self, view: int, keys: Sequence[int]) -> list[tuple[float, int]]:
        """See `Sharing.nearest_keys`; weights are those of TokenFlow, the sigmoid of the share of the way."""
        first, *rest = sorted(range(len(keys)), key=lambda place: abs(keys[place] - view))[:2]
        if not rest:
            return [(1.0, first)]
        near, far = (abs(keys[place] - view) for place in (first, rest[0]))
        weight = 1 / (1 + math.exp(-far / (near + far)))
        return [(weight, first), (1 - weight, rest[0])]


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
