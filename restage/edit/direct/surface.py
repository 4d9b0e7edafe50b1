"""The surface that a thing stands on or hangs at: found around it, painted from the views, filled where none sees it.

One surface is filled, as seen from straight above, and not each view, so that the fill is the same from all sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from restage.records import derive_seed
from restage.scenes.cameras import Cameras, project_points
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Painting", "Plane", "distance_from", "fill_unseen", "find_plane", "lay_splats", "look_up"]
__all__ += ["paint_plane", "plane_depths"]

NUM_TRIALS = 400
MAX_POINTS = 4000
"""Planes that are tried, and points that they are tried on."""
THICKNESS = 0.08
"""Points this near to a plane, as a share of the thing's size, lie on it."""
MIN_AHEAD = 0.9
"""Share of the thing's splats, and of the cameras, that lie on the near side of what it stands on."""
MAX_TEXELS = 420
"""Points of a painting along a side, at most."""
MIN_AGREEING, AGREE = 3, 0.03
"""So many views agree on the color of a point if half of them differ by less than this."""
RIM, MIN_HOLE = 3, 9
"""Points around a hole that a patch has to suit, and points from which on a hole is worth a patch."""


@dataclass(frozen=True)
class Plane:
    """A plane in the world, with axes of its own."""

    origin: Float[Tensor, " 3"]
    axes: Float[Tensor, "3 3"]  # rows: two directions in the plane, and its normal, toward the cameras

    def heights(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Distance of points from the plane, above 0 on the side of the cameras."""
        return (points - self.origin) @ self.axes[2]


@dataclass(frozen=True)
class Painting:
    """What views show of a part of a plane, on a grid of points."""

    plane: Plane
    points: Float[Tensor, "rows columns 3"]
    spacing: float  # of the points, in world units
    colors: Float[Tensor, "3 rows columns"]
    is_seen: Bool[Tensor, "rows columns"]  # whether a view shows the point, or views agree on its color
    is_empty: Bool[Tensor, "rows columns"]  # whether more views look past the point than show it, two at least


def find_plane(
    points: Float[Tensor, "n 3"], thing: Float[Tensor, "k 3"], cameras: Cameras, *, size: float, seed: int
) -> Plane | None:
    """Find the plane that most points around a thing lie on, with the thing and the cameras on one side (RANSAC).

    None where less than a tenth of the points lie on any plane.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "plane"))
    if len(points) < 50:
        return None
    points, thing, eyes = points.cpu(), thing.cpu(), cameras.positions
    chosen = points[torch.randperm(len(points), generator=generator)[:MAX_POINTS]]
    corners = chosen[torch.randint(len(chosen), (NUM_TRIALS, 3), generator=generator)]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = functional.normalize(normals, dim=1)
    offsets = (normals * corners[:, 0]).sum(dim=1)
    sides = torch.sign(normals @ eyes.mean(dim=0) - offsets)
    normals, offsets = normals * sides[:, None], offsets * sides
    is_on = (chosen @ normals.T - offsets).abs() < THICKNESS * size
    stands = ((thing @ normals.T - offsets) > -THICKNESS * size).float().mean(dim=0)
    faces = ((eyes @ normals.T - offsets) > 0).float().mean(dim=0)
    support = is_on.float().mean(dim=0) * ((stands > MIN_AHEAD) & (faces > MIN_AHEAD))
    best = int(support.argmax())
    if float(support[best]) < 0.1:
        return None
    members = chosen[is_on[:, best]].double()
    center = members.mean(dim=0)
    normal = torch.linalg.svd(members - center, full_matrices=False).Vh[2].float()
    normal = normal * torch.sign(normal @ normals[best])
    first = functional.normalize(
        torch.eye(3)[int(normal.abs().argmin())] - normal * normal[normal.abs().argmin()], dim=0
    )
    axes = torch.stack([first, torch.linalg.cross(normal, first), normal])
    middle = thing.mean(dim=0)
    return Plane(middle - normal * ((middle - center.float()) @ normal), axes)


def plane_depths(plane: Plane, cameras: Cameras) -> Float[Tensor, "h w"]:
    """Depth z at which each pixel of one camera (n = 1) meets the plane; infinite where it does not."""
    rows, columns = torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5
    grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)
    rays = pixels @ torch.linalg.inv(cameras.intrinsics[0]).T @ cameras.camera_to_world[0, :3, :3].T
    toward = rays @ plane.axes[2]
    depths = -plane.heights(cameras.positions) / torch.where(toward.abs() > 1e-6, toward, 1e-6)
    return torch.where((toward < 0) & (depths > 0), depths, torch.inf)


def paint_plane(
    plane: Plane,
    cameras: Cameras,
    images: Float[Tensor, "n 3 h w"],
    *,
    hidden: Float[Tensor, "n h w"],
    depths: Float[Tensor, "n h w"],
    reach: float,
) -> Painting:
    """Paint a square of a plane around its origin with the median of what views show there.

    `hidden` is above 0 where the thing hides what is behind it, `depths` are those of the surfaces that views show;
    `reach` is half a side, in world units. Points that no view shows have no color yet.
    """
    away = (cameras.positions - plane.origin).norm(dim=1).median()
    spacing = max(float(away / cameras.intrinsics[:, 0, 0].median()), 2 * reach / MAX_TEXELS)
    ticks = torch.arange(-reach, reach, spacing)
    down, across = torch.meshgrid(ticks, ticks, indexing="ij")
    points = plane.origin + across[..., None] * plane.axes[0] + down[..., None] * plane.axes[1]
    shown, open_to, num_past = [], [], torch.zeros(points.shape[:2])
    for view in range(len(cameras)):
        found, inside = look_up(
            torch.cat([images[view], hidden[view][None], depths[view][None]]), points, cameras[view]
        )
        away = project_points(points.reshape(-1, 3), cameras[view]).depths.reshape(inside.shape)
        # Seen at a slant, a surface's depth is that of a whole pixel: hence the wide limit.
        is_open = inside & (found[3] == 0)
        is_shown = is_open & ((found[4] - away).abs() < 0.05 * away)
        is_past = is_open & (found[4] >= 1.05 * away)
        num_past += is_past
        shown.append(torch.where(is_shown, found[:3], torch.nan))
        open_to.append(torch.where(is_shown | is_past, found[:3], torch.nan))
    stack, every = torch.stack(shown), torch.stack(open_to)
    num_shown, num_open = (torch.isfinite(maps[:, 0]).sum(dim=0) for maps in (stack, every))
    # Where all is of one color, depths of a fit mean little, and colors tell that the surface is there.
    middle = every.nanmedian(dim=0).values
    differences = (every - middle).abs().mean(dim=1).nanmedian(dim=0).values
    agree = (num_open >= MIN_AGREEING) & (differences < AGREE)
    colors = torch.where(num_shown > 0, stack.nanmedian(dim=0).values, middle).nan_to_num(0.0)
    is_seen = (num_shown > 0) | agree
    return Painting(plane, points, spacing, colors, is_seen, ~agree & (num_past > num_shown.clamp(min=1)))


def look_up(
    maps: Float[Tensor, "c h w"], points: Float[Tensor, "rows columns 3"], cameras: Cameras
) -> tuple[Float[Tensor, "c rows columns"], Bool[Tensor, "rows columns"]]:
    """What maps of one camera's view (n = 1) hold at points, and whether the view shows their place."""
    projected = project_points(points.reshape(-1, 3), cameras)
    grid = projected.pixels / torch.tensor([cameras.width, cameras.height]) * 2 - 1
    inside = (projected.depths > 0) & (grid.abs() <= 1).all(dim=1)
    grid = torch.where(inside[:, None], grid, 2.0).reshape(1, *points.shape[:2], 2)
    found = functional.grid_sample(maps[None].cpu(), grid, align_corners=False)[0]
    return found, inside.reshape(points.shape[:2])


def distance_from(marked: Bool[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Distance of each point from the nearest marked one, in points."""
    return torch.from_numpy(cv2.distanceTransform((~marked).numpy().astype(np.uint8), cv2.DIST_L2, 5))


def fill_unseen(
    painting: Painting,
    is_free: Bool[Tensor, "rows columns"],
    picture: Float[Tensor, "3 rows columns"] | None = None,
) -> Painting:
    """Fill the points without a color, from a picture of the plane or else from elsewhere on it.

    Without a picture the patch of the painting whose rim is most like the rim of the hole is taken; `is_free` are
    points that a patch may be taken from. Where no patch is free of holes, colors are carried on from the rim (Telea
    2004). Either is blended in so that it meets the rim (in the manner of Perez et al., "Poisson image editing", 2003).
    """
    hole = (~painting.is_seen).numpy()
    if not hole.any() or hole.all():
        return painting
    known = (painting.colors.permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    filled = cv2.inpaint(known, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(np.float32) / 255
    free = (is_free & painting.is_seen).numpy()
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(hole.astype(np.uint8))
    for label in range(1, count):
        x, y, width, height, area = (int(number) for number in boxes[label])
        rows = slice(max(0, y - RIM), y + height + RIM)
        columns = slice(max(0, x - RIM), x + width + RIM)
        part = labels[rows, columns] == label
        if picture is not None:
            patch = picture.permute(1, 2, 0).numpy()[rows, columns]
        else:
            patch = _best_patch(filled, part, free, (rows, columns)) if area >= MIN_HOLE else None
        if patch is not None:
            filled[rows, columns] = _blend(patch, filled[rows, columns], part)
    return replace(painting, colors=torch.from_numpy(filled).permute(2, 0, 1).clamp(0, 1).contiguous())


def _best_patch(
    filled: np.ndarray, part: np.ndarray, free: np.ndarray, place: tuple[slice, slice]
) -> np.ndarray | None:
    """The patch of a picture that suits a hole there best; None where none is free."""
    around = cv2.dilate(part.astype(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8))
    rim = (around > 0) & ~part & free[place]
    if rim.sum() < MIN_HOLE or part.shape[0] >= free.shape[0] or part.shape[1] >= free.shape[1]:
        return None
    weights = np.repeat(rim[..., None], 3, axis=2).astype(np.float32)
    costs = cv2.matchTemplate(filled, np.ascontiguousarray(filled[place]), cv2.TM_SQDIFF, mask=weights)
    # How many points of each patch are no place to copy from.
    blocked = cv2.matchTemplate((~free).astype(np.float32), around.astype(np.float32), cv2.TM_CCORR)
    costs = np.where(blocked > 0.5, np.inf, costs)
    if not np.isfinite(costs).any():
        return None
    row, column = np.unravel_index(int(costs.argmin()), costs.shape)
    return filled[row : row + part.shape[0], column : column + part.shape[1]].copy()


def _blend(patch: np.ndarray, target: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Put a patch in a hole, plus the smooth difference that makes it meet the target at the rim."""
    difference = np.where(inside[..., None], 0.0, target - patch)
    for _ in range(4 * max(inside.shape)):
        padded = np.pad(difference, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        difference = np.where(inside[..., None], mean, difference)
    return np.where(inside[..., None], patch + difference, target)


def lay_splats(painting: Painting, is_laid: Bool[Tensor, "rows columns"], num_harmonics: int) -> Splats:
    """Flat opaque splats at points of a painting."""
    means, colors = painting.points[is_laid], painting.colors[:, is_laid].T
    count = len(means)
    log_scales = torch.tensor([0.65, 0.65, 0.08]).mul(painting.spacing).log().expand(count, 3).contiguous()
    sh = torch.zeros(count, num_harmonics, 3)
    sh[:, 0] = (colors - 0.5) / SH_C0
    # The rotation whose columns are the axes of the plane.
    turn = Rotation.from_matrix(painting.plane.axes.T.double().numpy()).as_quat(scalar_first=True)
    rotations = torch.from_numpy(turn).float().expand(count, 4).contiguous()
    return Splats(means, log_scales, rotations, torch.full((count,), 4.0), sh)
