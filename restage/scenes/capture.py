"""A capture: posed photographs of one scene, sparse points, and which views are held out.

`scenes/io` reads it from what people have and writes it; the miniature world makes it; fitting and editing take it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras

__all__ = ["Capture", "turn_upright", "upright_turn"]

LEVEL_TOLERANCE_RAD = math.radians(10.0)
"""A world whose axis is this near to up is taken for upright; cameras are seldom held more level."""
MIN_SPREAD = 0.02
"""Share of the horizontal directions' spread across their main one, below which all cameras look the same way."""


@dataclass(frozen=True)
class Capture:
    """Posed views of one scene."""

    name: str
    cameras: Cameras
    images: Float[Tensor, "n 3 h w"]  # RGB in [0, 1]
    file_names: tuple[str, ...]  # file name of each view's image, without a folder; unique
    points: Float[Tensor, "m 3"]  # sparse points of the scene in world units; m may be 0
    point_colors: Float[Tensor, "m 3"]  # RGB in [0, 1]
    train_indices: tuple[int, ...]  # views that fitting and editing may see
    held_out_indices: tuple[int, ...]
    """Views kept for measuring; shares no view with `train_indices`."""
    masks: Float[Tensor, "n h w"] | None = None
    """Weight of each pixel in [0, 1]: 0 where a photograph shows nothing of the scene, such as outside of an
    undistorted picture or what a mask file leaves out; None where all pixels count."""
    own_to_world: Float[Tensor, "4 4"] | None = None
    """Similarity (one scale, a rotation, a shift) from the frame that the capture came in to this one, float64; None
    where they are the same."""
    notes: tuple[str, ...] = ()
    """What the user should know about it: pictures that were missing, turned, or of other shapes."""

    def __post_init__(self) -> None:
        num_views = len(self.cameras)
        size = (self.cameras.height, self.cameras.width)
        for what, shape in (("images", (num_views, 3, *size)), ("masks", (num_views, *size))):
            tensor = getattr(self, what)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise InputError(f"{self.name}: expected {what} of shape {shape}, got {tuple(tensor.shape)}")
        if len(self.file_names) != num_views or len(set(self.file_names)) != num_views:
            raise InputError(f"{self.name}: expected {num_views} different file names, got {len(set(self.file_names))}")
        counts = len(self.point_colors), len(self.points)
        if counts[0] != counts[1]:
            raise InputError(f"{self.name}: expected a color for each point, got {counts[0]} for {counts[1]}")
        used = [*self.train_indices, *self.held_out_indices]
        if len(set(used)) != len(used) or any(not 0 <= index < num_views for index in used):
            raise InputError(
                f"{self.name}: expected disjoint training and held-out views out of 0..{num_views - 1}, "
                f"got {self.train_indices} and {self.held_out_indices}"
            )
        if self.own_to_world is not None:
            turn = self.own_to_world[:3, :3] / self.own_to_world[0, :3].norm()
            if not torch.allclose(turn @ turn.T, torch.eye(3, dtype=turn.dtype), atol=1e-5):
                raise InputError(f"{self.name}: expected own_to_world to be a similarity, got {turn.tolist()}")

    def to(self, device: str | torch.device) -> Capture:
        """The same capture with images and masks on a device; cameras and points stay on the CPU."""
        return replace(self, images=self.images.to(device), masks=None if self.masks is None else self.masks.to(device))

    def select(self, indices: Sequence[int]) -> Capture:
        """Only these views, in this order, all of them training views; the points stay."""
        chosen = list(indices)
        return replace(
            self,
            cameras=self.cameras[chosen],
            images=self.images[chosen],
            file_names=tuple(self.file_names[index] for index in chosen),
            train_indices=tuple(range(len(chosen))),
            held_out_indices=(),
            masks=None if self.masks is None else self.masks[chosen],
        )


def turn_upright(capture: Capture) -> Capture:
    """The same capture in a world with z up, as `upright_turn` says; an upright one is returned as it is.

    `own_to_world` tells how it was turned, so that splats can be turned back (`turning.py`).
    """
    turn = upright_turn(capture.cameras)
    if torch.equal(turn, torch.eye(3, dtype=turn.dtype)):
        return capture
    camera_to_world = capture.cameras.camera_to_world.double().clone()
    camera_to_world[:, :3] = turn @ camera_to_world[:, :3]
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = turn
    return replace(
        capture,
        cameras=replace(capture.cameras, camera_to_world=camera_to_world.float()),
        points=(capture.points.double() @ turn.T).to(capture.points),
        own_to_world=change if capture.own_to_world is None else change @ capture.own_to_world,
    )


def upright_turn(cameras: Cameras) -> Float[Tensor, "3 3"]:
    """Rotation of the world, float64, after which z is up, as photographers hold their cameras.

    Up is the direction that the images' rows are all perpendicular to, for cameras are tilted but seldom rolled; where
    all look the same way, the mean of the images' own up. If an axis of the world is within 10 degrees of it, that axis
    becomes z by turns of a quarter, so that numbers keep their bits; the usual world of COLMAP, with y down, goes to
    (x, z, -y) as in nerfstudio's `ns-process-data`.
    """
    rotations = cameras.camera_to_world[:, :3, :3].double()
    mean_up = -rotations[:, :, 1].mean(dim=0)
    # The direction in which right vectors spread least is what all of them are perpendicular to.
    spread, directions = torch.linalg.eigh(rotations[:, :, 0].T @ rotations[:, :, 0])
    up = directions[:, 0] if float(spread[1]) > MIN_SPREAD * float(spread[2]) else mean_up
    up = up * (1.0 if float(up @ mean_up) >= 0 else -1.0) / up.norm().clamp_min(1e-12)
    axis = int(up.abs().argmax())
    if float(up[axis].abs()) >= math.cos(LEVEL_TOLERANCE_RAD):
        up = torch.zeros(3, dtype=torch.float64).index_fill_(0, torch.tensor(axis), float(up[axis].sign()))
    return _least_rotation(up, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def _least_rotation(start: Float[Tensor, " 3"], end: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation by the smallest angle from one unit vector to another (Rodrigues); about x if they are opposite."""
    cosine = float(start @ end)
    if cosine < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=start.dtype))
    x, y, z = torch.linalg.cross(start, end).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=start.dtype)
    return torch.eye(3, dtype=start.dtype) + cross + cross @ cross / (1 + cosine)
