"""Between nerfstudio's cameras and Restage's: axes, units, and the frame that nerfstudio's dataparser chose.

nerfstudio's cameras are OpenGL (y up, z back), and its dataparser turns, shifts and scales the world of a capture.
"""

# nerfstudio is in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras

__all__ = ["Similarity", "from_nerfstudio_cameras", "similarity_between", "to_nerfstudio_cameras"]

AXES = torch.tensor([1.0, -1.0, -1.0])
"""Column factors between OpenGL and OpenCV cameras, both ways."""


class Similarity(NamedTuple):
    """Maps a point x of one frame to `scale * rotation @ x + translation` in the other."""

    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, " 3"]
    scale: float


def from_nerfstudio_cameras(cameras: Any) -> Cameras:
    """Restage's cameras, in the same frame; lens distortion is left out.

    Raises:
        InputError: the cameras differ in image size.
    """
    sizes = {(int(w), int(h)) for w, h in zip(cameras.width.flatten(), cameras.height.flatten(), strict=True)}
    if len(sizes) != 1:
        raise InputError(f"expected training images of one size, got {sorted(sizes)}; crop them alike")
    width, height = sizes.pop()
    transforms = cameras.camera_to_worlds.float().cpu()
    camera_to_world = torch.eye(4).repeat(len(transforms), 1, 1)
    camera_to_world[:, :3, :3] = transforms[:, :, :3] * AXES
    camera_to_world[:, :3, 3] = transforms[:, :, 3]
    return Cameras(camera_to_world, cameras.get_intrinsics_matrices().float().cpu(), width, height)


def to_nerfstudio_cameras(cameras: Cameras, similarity: Similarity) -> Any:
    """Make nerfstudio's cameras, in the frame that the similarity leads to."""
    from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras

    rotations = similarity.rotation @ cameras.camera_to_world[:, :3, :3] * AXES
    positions = similarity.scale * cameras.positions @ similarity.rotation.T + similarity.translation
    intrinsics = cameras.intrinsics
    return NerfstudioCameras(
        camera_to_worlds=torch.cat([rotations, positions[:, :, None]], dim=2),
        fx=intrinsics[:, 0, :1].clone(),
        fy=intrinsics[:, 1, 1:2].clone(),
        cx=intrinsics[:, 0, 2:].clone(),
        cy=intrinsics[:, 1, 2:].clone(),
        width=cameras.width,
        height=cameras.height,
    )


def similarity_between(source: Cameras, target: Cameras) -> Similarity:
    """Return the similarity that leads from one frame to the other, from the same cameras seen in both.

    Raises:
        InputError: fewer than two cameras, all at one place, or frames that no similarity connects.
    """
    shifts = source.positions - source.positions.mean(dim=0)
    moved = target.positions - target.positions.mean(dim=0)
    if len(source) < 2 or float(shifts.norm()) < 1e-6:
        raise InputError("expected at least two cameras at different places, to tell how the frames differ in scale")
    # The mean of many rotations that agree up to rounding, made a rotation again.
    products = target.camera_to_world[:, :3, :3].double() @ source.camera_to_world[:, :3, :3].double().transpose(1, 2)
    left, _, right = torch.linalg.svd(products.mean(dim=0))
    rotation = (left @ right).float()
    scale = float(moved.norm() / shifts.norm())
    translation = target.positions.mean(dim=0) - scale * rotation @ source.positions.mean(dim=0)
    mapped = scale * source.positions @ rotation.T + translation
    if float((mapped - target.positions).abs().max()) > 1e-3 * max(1.0, float(moved.norm())):
        raise InputError(
            "expected the cameras of the trained scene to be those of the capture, but for one shift, turn and scale; "
            "give its own folder, or train it with: nerfstudio-data --orientation-method none"
        )
    return Similarity(rotation, translation, scale)
