"""The cameras of generated scenes: around the middle of a scene, as the captures of the miniature are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.initial import surroundings_of
from restage.world.capture import camera_at

__all__ = ["Rig", "azimuth_rad", "rays_of"]


@dataclass(frozen=True, kw_only=True)
class Rig:
    """Where cameras stand around a scene whose ground is at z = 0; the x axis points to its front."""

    distance: float = 3.2
    """Distance of the cameras from the middle of the scene, in world units; a scene has no scale of its own, so this
    only says how large its units are."""
    lowest_rad: float = math.radians(10)
    highest_rad: float = math.radians(27)
    """Range of the cameras' elevation."""
    target_height: float = 0.5
    """Height of the middle that all cameras look at, in world units."""

    def __post_init__(self) -> None:
        if not (0 < self.distance and 0 < self.lowest_rad <= self.highest_rad < math.pi / 2):
            raise InputError(f"expected a distance above 0 and elevations between 0 and 90 degrees, got {self}")

    def draw(self, seed: int, *, size: int) -> Cameras:
        """One camera (n = 1) anywhere around the scene."""
        rng = np.random.default_rng(derive_seed("rig", seed))
        elevation = rng.uniform(self.lowest_rad, self.highest_rad)
        away = self.distance * rng.uniform(0.95, 1.12)
        return camera_at(rng.uniform(0, math.tau), elevation, away, size, target_height=self.target_height)

    def ring(self, num_views: int, *, size: int, start_rad: float = 0.0) -> Cameras:
        """Cameras all around, at angles evenly spaced and at four elevations in turn, as a capture has them."""
        rise = self.highest_rad - self.lowest_rad
        cameras = [
            camera_at(
                start_rad + math.tau * index / num_views,
                self.lowest_rad + rise * (0.1, 0.6, 0.95, 0.3)[index % 4],
                self.distance,
                size,
                target_height=self.target_height,
            )
            for index in range(num_views)
        ]
        poses, lenses = (torch.cat([getattr(c, name) for c in cameras]) for name in ("camera_to_world", "intrinsics"))
        return Cameras(poses, lenses, size, size)


def azimuth_rad(cameras: Cameras) -> float:
    """Angle in [-pi, pi] at which one camera (n = 1) stands around the vertical axis, 0 before the scene."""
    x, y, _ = cameras.positions[0].tolist()
    return math.atan2(y, x)


def rays_of(cameras: Cameras, side: int) -> Float[Tensor, "n 6 side side"]:
    """Lines of sight of a coarse grid of pixels in Plücker coordinates, for models that are told the cameras.

    In the frame of the first view: its azimuth is 0, the middle that all look at is the origin, and the cameras are one
    unit away from it. So what a model is told does not depend on how a scene is turned, where it lies and how large its
    units are, none of which pictures show.
    """
    coarse = cameras.to_size(side, side)
    center, size = surroundings_of(cameras)
    x, y, _ = (cameras.positions[0] - center).tolist()
    turn, length = torch.eye(3), max(math.hypot(x, y), 1e-9)
    turn[:2, :2] = torch.tensor([[x, y], [-y, x]]) / length
    steps = torch.arange(side) + 0.5
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).reshape(-1, 3)
    in_camera = pixels @ torch.linalg.inv(coarse.intrinsics).transpose(1, 2)
    directions = in_camera @ (turn @ coarse.camera_to_world[:, :3, :3]).transpose(1, 2)
    directions = directions / directions.norm(dim=2, keepdim=True)
    origins = ((coarse.positions - center) / size @ turn.T)[:, None].expand_as(directions)
    rays = torch.cat([directions, torch.linalg.cross(origins, directions)], dim=2)
    return rays.transpose(1, 2).unflatten(2, (side, side))
