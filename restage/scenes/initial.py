"""The splats that a fit starts from: at the sparse points, or spread over what the cameras see, plus a far shell."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras, project_points
from restage.scenes.capture import Capture
from restage.scenes.splats import SH_C0, Splats
from restage.scenes.sweep import swept_points

__all__ = ["Surroundings", "initial_splats", "surroundings_of", "with_points"]

INITIAL_OPACITY = 0.3
MIN_POINTS_SHARE = 0.05
"""Sparse points, as a share of the splats, from which on splats are put between them rather than anywhere in space."""
NEIGHBORS = 4
MAX_REDRAWS = 30
"""How often a random pixel is drawn anew if it does not count."""
BARE_POWER = 2.0
"""Splats between sparse points are drawn by the distance to the next points as it is seen, to this power."""


class Surroundings(NamedTuple):
    """Where the cameras look, and from how far."""

    center: Float[Tensor, " 3"]  # the point nearest to all optical axes, in world units
    size: float  # median distance of the cameras from it, in world units; at least 1e-3


def surroundings_of(cameras: Cameras) -> Surroundings:
    """Least-squares meeting point of the optical axes (ridge towards points ahead of the cameras), and the distance."""
    positions = cameras.positions.double()
    directions = cameras.camera_to_world[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    spread = max(float((positions - positions.mean(0)).norm(dim=1).mean()), 1e-3)
    ahead = positions.mean(0) + spread * directions.mean(0)
    # Parallel axes meet nowhere: a weak pull towards points ahead then decides.
    ridge = 1e-3 * len(cameras)
    right = (across @ positions[:, :, None]).sum(0)[:, 0] + ridge * ahead
    center = torch.linalg.solve(across.sum(0) + ridge * torch.eye(3, dtype=torch.float64), right)
    size = float((positions - center).norm(dim=1).median())
    return Surroundings(center.float(), max(size, 1e-3))


def initial_splats(
    capture: Capture,
    num_splats: int,
    *,
    sh_degree: int,
    shell_share: float,
    shell_radius: float = 4.0,
    scale_share: float = 1.0,
    seed: int,
) -> Splats:
    """Round splats, colored like the points or the pixels before them; for the shares and the radius see `FitConfig`.

    Only the capture's training views and sparse points are used. Where there are too few points, the rest lies between
    neighboring points; with hardly any (see `with_points`), splats are spread over the space that the cameras see.
    """
    if not capture.train_indices:
        raise InputError(f"{capture.name}: expected training views to fit, got none")
    generator = torch.Generator().manual_seed(derive_seed(seed, "initial splats"))
    train = capture.select(capture.train_indices)
    surroundings = surroundings_of(train.cameras)
    num_shell = round(shell_share * num_splats)
    min_points = MIN_POINTS_SHARE * num_splats
    num_sparse = min(len(capture.points), num_splats - num_shell)
    chosen = torch.randperm(len(capture.points), generator=generator)[:num_sparse]
    num_between = num_splats - num_shell - num_sparse if len(capture.points) >= min_points else 0
    groups = [
        (capture.points[chosen], capture.point_colors[chosen]),
        _points_between(capture, train.cameras, num_between, generator=generator),
        _seen_points(train, surroundings, num_splats - num_shell - num_sparse - num_between, generator=generator),
        _shell_points(train, surroundings, num_shell, shell_radius=shell_radius, generator=generator),
    ]
    splats = [
        _round_splats(points, colors, sh_degree, scene_size=surroundings.size, scale_share=scale_share)
        for points, colors in groups
        if len(points)
    ]
    return Splats(*(torch.cat(parts) for parts in zip(*(part.parameters().values() for part in splats), strict=True)))


def with_points(capture: Capture, num_splats: int) -> Capture:
    """Return a capture that has hardly any sparse points with those, too, that its training views agree on.

    They are found by a sweep through the depths of the views. Where that finds none either, a note of the capture says
    so. A capture that has enough for so many splats is returned as it is.
    """
    if len(capture.points) >= MIN_POINTS_SHARE * num_splats or not capture.train_indices:
        return capture
    train = capture.select(capture.train_indices)
    surroundings = surroundings_of(train.cameras)
    swept = swept_points(train, surroundings.center, surroundings.size)
    points, colors = torch.cat([capture.points, swept.positions]), torch.cat([capture.point_colors, swept.colors])
    notes = capture.notes
    if len(points) < MIN_POINTS_SHARE * num_splats:
        notes = (
            *notes,
            f"{capture.name}: it has {len(points)} points and its views agree on no more, so that splats start at "
            "random depths and come out worse; give it points, or more views that overlap",
        )
    return replace(capture, points=points, point_colors=colors, notes=notes)


def _random_rays(train: Capture, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Camera index, unit direction, share of depth in [0, 1), and color of random pixels of the views that count."""
    height, width = train.cameras.height, train.cameras.width
    views, rows, columns = (
        torch.randint(most, (count,), generator=generator) for most in (len(train.cameras), height, width)
    )
    # A splat that starts behind a pixel that does not count may never be corrected, and is seen in other views.
    for _ in range(MAX_REDRAWS):
        if train.masks is None:
            break
        again = (train.masks[views, rows, columns] == 0).nonzero()[:, 0]
        for drawn, most in ((views, len(train.cameras)), (rows, height), (columns, width)):
            drawn[again] = torch.randint(most, (len(again),), generator=generator)
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones(count)], dim=1)
    in_camera = (torch.linalg.inv(train.cameras.intrinsics)[views] @ pixels[:, :, None])[:, :, 0]
    rays = (train.cameras.camera_to_world[views, :3, :3] @ in_camera[:, :, None])[:, :, 0]
    directions = torch.nn.functional.normalize(rays, dim=1)
    return views, directions, torch.rand(count, generator=generator), train.images[views, :, rows, columns]


def _points_between(
    capture: Capture, cameras: Cameras, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points on the way from a sparse point to one of its nearest, colored like what they lie between.

    They start where sparse points leave most of a picture bare: at random, by the squared angle between neighbors as
    the nearest camera sees them. Splats at random depths, as without points, hide the scene: the bear came out 5 dB
    worse with a third of them.
    """
    points, colors = capture.points, capture.point_colors
    if not count or len(points) < 2:
        return points[:1].expand(count, 3), colors[:1].expand(count, 3)
    neighbors = min(NEIGHBORS, len(points) - 1)
    found = KDTree(points.numpy()).query(points.numpy(), k=neighbors + 1)
    spacing, nearest = (torch.from_numpy(np.asarray(array)) for array in found)
    away = torch.from_numpy(np.asarray(KDTree(cameras.positions.numpy()).query(points.numpy())[0]))
    bare = (spacing[:, 1:].mean(1) / away.clamp_min(1e-6)).clamp_min(1e-12) ** BARE_POWER
    cumulative = bare.cumsum(0)  # torch.multinomial takes no more than 2^24 points
    draws = torch.rand(count, dtype=torch.float64, generator=generator) * cumulative[-1]
    sources = torch.searchsorted(cumulative, draws).clamp_max(len(points) - 1)
    ranks = torch.randint(1, neighbors + 1, (count,), generator=generator)
    ends = nearest[sources].gather(1, ranks[:, None])[:, 0]
    shares = torch.rand(count, 1, generator=generator)
    return points[sources].lerp(points[ends], shares), colors[sources].lerp(colors[ends], shares)


def _seen_points(
    train: Capture, surroundings: Surroundings, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points at random depths along random pixels, from a third to 1.7 times the scene's size, seen by two views."""
    views, directions, shares, colors = _random_rays(train, 8 * count, generator)
    points = train.cameras.positions[views] + directions * (0.33 + 1.4 * shares[:, None]) * surroundings.size
    times_seen = torch.zeros(len(points))
    for view in range(len(train.cameras)):
        pixels, depths = project_points(points, train.cameras[view])
        side = torch.tensor([train.cameras.width, train.cameras.height])
        times_seen += ((depths > 0) & (pixels >= 0).all(1) & (pixels < side).all(1)).float()
    # What only one view sees cannot be placed by parallax, so such points come last.
    order = torch.argsort((times_seen < min(2, len(train.cameras))).int(), stable=True)[:count]
    return points[order], colors[order]


def _shell_points(
    train: Capture, surroundings: Surroundings, count: int, *, shell_radius: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points of a far sphere behind random pixels."""
    views, directions, _, colors = _random_rays(train, count, generator)
    origins = train.cameras.positions[views] - surroundings.center
    along = (origins * directions).sum(1)
    # A camera outside of the shell would see its far side only.
    radius = torch.clamp_min(origins.norm(dim=1) * 1.01, shell_radius * surroundings.size)
    distance = -along + torch.sqrt(along**2 - (origins**2).sum(1) + radius**2)
    return surroundings.center + origins + directions * distance[:, None], colors


def _round_splats(points: Tensor, colors: Tensor, sh_degree: int, *, scene_size: float, scale_share: float) -> Splats:
    count = len(points)
    neighbors = min(4, count)
    distances = np.asarray(KDTree(points.numpy()).query(points.numpy(), k=neighbors)[0]).reshape(count, neighbors)
    spacing = torch.from_numpy(distances[:, 1:].mean(1) if neighbors > 1 else np.full(count, 0.1 * scene_size))
    log_scales = (scale_share * spacing.float()).clamp(1e-4 * scene_size, scene_size).log()
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (colors - 0.5) / SH_C0
    return Splats(
        means=points.clone(),
        log_scales=log_scales[:, None].repeat(1, 3),
        rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacity_logits=torch.full((count,), INITIAL_OPACITY).logit(),
        sh=sh,
    )
