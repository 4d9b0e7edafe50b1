"""Conditions of pictures (`restage.diffusion.conditions`) from files and from splats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.diffusion.conditions import invert_depth, slots_of
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.io.images import UNREADABLE, open_picture, read_image
from restage.scenes.rasterize import rasterize
from restage.scenes.splats import Splats

__all__ = ["edges_of", "read_condition", "splat_depths"]

MIN_ALPHA = 0.5
"""Where a view shows less than this of any splat, it has no depth."""
CANNY = (100, 200)
"""Thresholds on the gradient of 8-bit gray, as ControlNet's canny was trained with."""


@torch.no_grad()
def splat_depths(splats: Splats, cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Render the expected z depth of every view, in world units; infinite where nothing is seen."""
    depths = []
    for view in range(len(cameras)):
        rendering = rasterize(splats.detach(), cameras[view])
        depths.append(torch.where(rendering.alpha > MIN_ALPHA, rendering.depth, torch.inf))
    return torch.stack(depths)


def edges_of(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 h w"]:
    """Find the edges of a picture by Canny's method: 1 on edges, else 0; a picture of edges is taken as it is."""
    gray = image.mean(dim=0, keepdim=True)
    if bool(((gray < 0.02) | (gray > 0.98)).all()):
        return gray.round()
    import cv2  # takes a moment

    values = cv2.cvtColor((image * 255).round().byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(cv2.Canny(values, *CANNY))[None].float() / 255


def read_condition(name: str, path: Path, *, near: float = 1.0, as_picture: bool = False) -> Float[Tensor, "_ h w"]:
    """Read a condition from a file.

    `depth`: z depth in the unit of `near` as .npy, or inverse depth in [0, 1] as a gray picture of 8 or 16 bits. `ids`:
    a number for each pixel, as .npy or a gray or indexed picture: 0 sky, 1 ground, others things. `canny`: a picture,
    whose edges are found, or one of edges. All others, and ids for a ControlNet (`as_picture`), are pictures.

    Raises:
        InputError: the file is missing, broken, or does not hold that.
    """
    if path.suffix.lower() == ".npy":
        values = _read_array(path)
        if name == "depth":
            return invert_depth(torch.from_numpy(values.astype(np.float32)), near)
        if name == "ids" and np.issubdtype(values.dtype, np.integer):
            return slots_of(torch.from_numpy(values.astype(np.int64)))
        raise InputError(f"{path}: expected depth, or whole numbers for ids, got {values.dtype} for {name}")
    if name == "ids" and not as_picture:
        return slots_of(_read_labels(path))
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1).contiguous()
    if name == "depth":
        return image[:1]
    return edges_of(image) if name == "canny" else image


def _read_array(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not readable as an array: {str(error)[:200]}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path}: expected numbers in rows and columns, got {getattr(values, 'shape', 'an archive')}")
    return values


def _read_labels(path: Path) -> Int[Tensor, "h w"]:
    with open_picture(path) as image:
        if image.mode not in ("1", "L", "P", "I;16"):
            raise InputError(
                f"{path}: expected a gray or indexed picture with a number for each pixel, got mode {image.mode}"
            )
        try:
            return torch.from_numpy(np.asarray(image).astype(np.int64))
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as an image: {error}") from None
