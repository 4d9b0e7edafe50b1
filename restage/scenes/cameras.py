"""Pinhole cameras: where they stand, how they see, and how a world point lands on their image.

Axes are OpenCV (x right, y down, z forward); the world is right-handed with z up; the center of the top left pixel
is at (0.5, 0.5). Every part that renders or projects uses this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError

__all__ = ["Cameras", "MAX_SIDE", "Projected", "intrinsics_from_fov", "look_at", "orbit", "project_points"]
__all__ += ["unproject_depth"]

MAX_SIDE = 20_000
"""Longest side of an image in pixels; what claims to be larger is taken for a mistake."""


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of one image size; intrinsics and sizes are in pixels.

    They lie on the CPU, whatever device the scene is on: their few numbers are read one by one.
    """

    camera_to_world: Float[Tensor, "n 4 4"]
    """Rigid transforms, float32; columns are the camera's right, down, forward and its position."""
    intrinsics: Float[Tensor, "n 3 3"]
    width: int
    height: int

    def __post_init__(self) -> None:
        if not (0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE):
            raise InputError(f"expected an image size from 1 to {MAX_SIDE}, got {self.width}x{self.height}")
        counts = len(self.intrinsics), len(self.camera_to_world)
        if counts[0] != counts[1]:
            raise InputError(f"expected as many intrinsics as transforms, got {counts[0]} and {counts[1]}")
        if not (torch.isfinite(self.camera_to_world).all() and torch.isfinite(self.intrinsics).all()):
            raise InputError("expected finite camera transforms and intrinsics, got NaN or infinity; check the capture")
        focal_px = self.intrinsics[:, [0, 1], [0, 1]]
        if not (focal_px > 0).all():
            raise InputError(f"expected focal lengths above 0 px, got {float(focal_px.min())}")

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cameras:
        """Pick cameras; an int gives one camera, still with its leading dimension of 1."""
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"camera {index} of {len(self)}")
        chosen = [index] if isinstance(index, int) else index if isinstance(index, slice) else list(index)
        return Cameras(self.camera_to_world[chosen], self.intrinsics[chosen], self.width, self.height)

    @property
    def world_to_camera(self) -> Float[Tensor, "n 4 4"]:
        """The inverse rigid transforms."""
        rotation = self.camera_to_world[:, :3, :3].transpose(1, 2)
        inverse = torch.zeros_like(self.camera_to_world)
        inverse[:, :3, :3] = rotation
        inverse[:, :3, 3:] = -rotation @ self.camera_to_world[:, :3, 3:]
        inverse[:, 3, 3] = 1.0
        return inverse

    @property
    def positions(self) -> Float[Tensor, "n 3"]:
        """Where the cameras stand, in world units."""
        return self.camera_to_world[:, :3, 3]

    def to_size(self, width: int, height: int) -> Cameras:
        """The same cameras with another image size in pixels; what they see stays the same."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0]).to(self.intrinsics)
        return Cameras(self.camera_to_world, self.intrinsics * scale[:, None], width, height)


class Projected(NamedTuple):
    """World points as one camera sees them."""

    pixels: Float[Tensor, "m 2"]  # (x, y) in pixels; meaningless where `depths` <= 0
    depths: Float[Tensor, " m"]
    """z in the camera frame, in world units; negative behind the camera."""


def look_at(eye: Float[Tensor, " 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "4 4"]:
    """Return `camera_to_world` of a camera at `eye`, upright along z, that looks at `target`, not along z."""
    up = torch.tensor([0.0, 0.0, 1.0]).to(eye)
    forward = target - eye
    right = torch.linalg.cross(forward, up)
    if float(forward.norm()) < 1e-9 or float(right.norm()) < 1e-6 * float(forward.norm()):
        raise InputError(f"expected a view direction not along z, got {forward.tolist()}; move the camera")
    forward = forward / forward.norm()
    right = right / right.norm()
    camera_to_world = torch.eye(4).to(eye)
    camera_to_world[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    camera_to_world[:3, 3] = eye
    return camera_to_world


def orbit(
    n: int, radius: float, *, height: float, target: Float[Tensor, " 3"] | None = None, start_rad: float = 0.0
) -> Float[Tensor, "n 4 4"]:
    """Return `camera_to_world` of n cameras on a horizontal circle, all looking at `target` (default: the origin).

    The circle lies around the target's vertical axis, at z = height. Angles count from the x axis towards y.
    """
    target = torch.zeros(3) if target is None else target
    angles = start_rad + 2 * math.pi * torch.arange(n, dtype=torch.float64) / max(n, 1)
    eyes = torch.stack([angles.cos() * radius + target[0], angles.sin() * radius + target[1]], dim=1)
    poses = [look_at(torch.tensor([float(x), float(y), height]).to(target), target) for x, y in eyes.tolist()]
    return torch.stack(poses) if poses else torch.zeros(0, 4, 4)


def intrinsics_from_fov(fov_rad: float, width: int, height: int) -> Float[Tensor, "3 3"]:
    """Return intrinsics with square pixels and a centered principal point; `fov_rad` spans the width."""
    if not 0 < fov_rad < math.pi:
        raise InputError(f"expected a field of view between 0 and pi rad, got {fov_rad}")
    focal_px = 0.5 * width / math.tan(0.5 * fov_rad)
    return torch.tensor([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])


def project_points(points: Float[Tensor, "m 3"], cameras: Cameras) -> Projected:
    """Project world points into one camera (n = 1), on the points' device."""
    device = points.device
    world_to_camera, intrinsics = cameras.world_to_camera[0].to(device), cameras.intrinsics[0].to(device)
    in_camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depths = in_camera[:, 2]
    safe = torch.where(depths.abs() > 1e-9, depths, torch.full_like(depths, 1e-9))
    return Projected((in_camera @ intrinsics.T)[:, :2] / safe[:, None], depths)


def unproject_depth(depth: Float[Tensor, "h w"], cameras: Cameras) -> Float[Tensor, "h w 3"]:
    """Return the world point of each pixel of one camera (n = 1), from z depth; not finite where that is infinite."""
    rows = torch.arange(cameras.height).to(depth) + 0.5
    columns = torch.arange(cameras.width).to(depth) + 0.5
    grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)
    in_camera = pixels @ torch.linalg.inv(cameras.intrinsics[0]).T.to(depth.device) * depth[..., None]
    camera_to_world = cameras.camera_to_world[0].to(depth.device)
    return in_camera @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]
