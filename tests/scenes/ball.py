"""A small capture to test fits on: a ball of colored splats, seen from a ring of cameras."""

from __future__ import annotations

import torch

from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats

SIZE = 24


def ball_of_splats(count: int = 80) -> Splats:
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 0.6
    return Splats(
        means,
        torch.full((count, 3), -1.9),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count,), 2.0),
        means[:, None, :] * 1.5,
    )


def ring(count: int, *, height: float = 0.8) -> Cameras:
    intrinsics = intrinsics_from_fov(0.9, SIZE, SIZE).expand(count, 3, 3)
    return Cameras(orbit(count, 2.2, height=height), intrinsics, SIZE, SIZE)


def ball_capture(*, height: float = 0.8) -> Capture:
    """Eight views from a height, of which the fourth and the last are held out."""
    splats, cameras = ball_of_splats(), ring(8, height=height)
    return Capture(
        name="ball",
        cameras=cameras,
        images=render_views(splats, cameras),
        file_names=tuple(f"{index}.png" for index in range(8)),
        points=splats.means + 0.02,
        point_colors=torch.full_like(splats.means, 0.5),
        train_indices=(0, 1, 2, 4, 5, 6),
        held_out_indices=(3, 7),
    )


def equal(first: Splats, second: Splats) -> bool:
    """Whether two scenes of splats are the same bit for bit."""
    pairs = zip(first.parameters().values(), second.parameters().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
