"""EXIF orientation: which way up stored pixels are, which pixels a camera model is for, and how to get upright views.

COLMAP and nerfstudio read pixels as they are stored; instant-ngp, OpenCV and phones' own apps turn them first. A model
is therefore for either, and the shape of its pictures tells for which.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.scenes.io.images import PictureHead

__all__ = ["Orientation", "orientation_of", "shown_size", "turn_camera", "turn_intrinsics", "turn_pixels", "unexif"]

QUARTERS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}
"""Clockwise quarter turns that bring stored pixels upright, by EXIF orientation."""
MIRRORED = (2, 4, 5, 7)
"""Orientations that mirror the picture left to right, after the turn."""
SAME_SHAPE = 0.02


class Orientation(NamedTuple):
    """How a stored picture becomes the upright view."""

    before: int = 1
    """EXIF orientation to apply before the lens is taken out: the camera model is for the picture as it is shown."""
    quarters: int = 0
    """Clockwise quarter turns of the view and of its camera after that: the model is for pixels as they are stored."""
    is_guess: bool = False
    """Whether the shape of the picture did not tell which of the two it is."""


def orientation_of(head: PictureHead, width: int, height: int) -> Orientation:
    """Tell from a camera model's size for which pixels it is.

    A mirrored picture whose model is for stored pixels is only turned: the model's world is mirrored as well.
    """
    if head.orientation == 1:
        return Orientation()
    model, stored = width / height, head.width / head.height
    is_stored = abs(model / stored - 1) < SAME_SHAPE
    is_shown = abs(model * stored - 1) < SAME_SHAPE if head.orientation >= 5 else is_stored
    if is_shown and not is_stored:
        return Orientation(before=head.orientation)
    return Orientation(quarters=QUARTERS[head.orientation], is_guess=is_shown and is_stored)


def shown_size(width: int, height: int, orientation: Orientation) -> tuple[int, int]:
    """Size of a view after its quarter turns."""
    return (height, width) if orientation.quarters % 2 else (width, height)


def unexif(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels "h w ..." as they are to be shown."""
    turned = np.rot90(pixels, -QUARTERS[orientation])
    return np.ascontiguousarray(turned[:, ::-1] if orientation in MIRRORED else turned)


def turn_pixels(pixels: np.ndarray, quarters: int) -> np.ndarray:
    """Turn pixels "h w ..." clockwise."""
    return np.ascontiguousarray(np.rot90(pixels, -quarters)) if quarters else pixels


def turn_intrinsics(intrinsics: Float[np.ndarray, "3 3"], quarters: int, width: int, height: int) -> np.ndarray:
    """Intrinsics of a picture of this size after clockwise quarter turns."""
    for _ in range(quarters):
        (focal_x, _, center_x), (_, focal_y, center_y), _ = intrinsics.tolist()
        intrinsics = np.array([[focal_y, 0, height - center_y], [0, focal_x, center_x], [0, 0, 1]], np.float64)
        width, height = height, width
    return intrinsics


def turn_camera(camera_to_world: Float[Tensor, "4 4"], quarters: int) -> Float[Tensor, "4 4"]:
    """The pose of the camera whose pictures are turned clockwise: its right is what was up."""
    turn = torch.zeros(4, 4).to(camera_to_world)
    turn[0, 1], turn[1, 0], turn[2, 2], turn[3, 3] = 1, -1, 1, 1
    for _ in range(quarters):
        camera_to_world = camera_to_world @ turn
    return camera_to_world
