"""Conditions of pictures (`restage.diffusion.conditions`) from files and from splats."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.diffusion.conditions import NUM_SLOTS, invert_depth, near_depth, slots_of
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.io.images import UNREADABLE, open_picture, read_image
from restage.scenes.rasterize import rasterize
from restage.scenes.splats import Splats

__all__ = ["edges_of", "read_condition", "read_ids", "splat_depths"]

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
    """Find the edges of a picture by Canny's method: 1 on edges, else 0; white edges on black are taken as they are."""
    gray = image.mean(dim=0, keepdim=True)
    if bool(((gray < 0.02) | (gray > 0.98)).all()) and float(gray.mean()) < 0.5:
        return gray.round()
    import cv2  # takes a moment

    values = cv2.cvtColor((image * 255).round().byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    return torch.from_numpy(cv2.Canny(values, *CANNY))[None].float() / 255


def read_condition(
    name: str, path: Path, *, near: float | None = 1.0, as_picture: bool = False
) -> Float[Tensor, "_ h w"]:
    """Read a condition from a file.

    `depth`: z depth in the unit of `near` (None: see `near_depth`) as an array or a TIFF of floats, or inverse depth in
    [0, 1] as a gray picture of 8 or 16 bits. `ids`: see `read_ids`. `canny`: a picture, whose edges are found, or one
    of white edges. All others, and ids for a ControlNet (`as_picture`), are pictures. An array is a .npy, or a .npz
    with one array or one that has the condition's name.

    Raises:
        InputError: the file is missing, broken, or does not hold that.
    """
    if name == "ids" and not as_picture:
        return read_ids([path])[0]
    if path.suffix.lower() in ARRAYS and name != "depth":
        raise InputError(f"{path}: expected a picture of {name}, got an array")
    if name == "depth":
        return _read_depth(path, near)
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1).contiguous()
    return edges_of(image) if name == "canny" else image


def read_ids(paths: Sequence[Path]) -> list[Float[Tensor, "_ h w"]]:
    """Read what is one thing in each of several frames, as slots that a thing keeps through all of them.

    Each file has a whole number for each pixel, as an array or a gray or indexed picture: 0 sky, 1 ground, all others
    things, whatever the numbers are.

    Raises:
        InputError: a file is missing, broken, or does not hold that, or there are too many things.
    """
    labels = [_read_labels(path) for path in paths]
    numbers = torch.cat([one.unique() for one in labels]).unique()
    things = numbers[numbers > 1]
    if len(things) > NUM_SLOTS:
        where = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        raise InputError(f"{where}: at most {NUM_SLOTS} things can be told apart, got {len(things)}")
    counted = [torch.where(one > 1, torch.searchsorted(things, one) + 2, one) for one in labels]
    return [slots_of(one, range(len(things))) for one in counted]


ARRAYS = (".npy", ".npz")


def _read_depth(path: Path, near: float | None) -> Float[Tensor, "1 h w"]:
    if path.suffix.lower() in ARRAYS:
        values = _read_array(path, "depth")
    else:
        with open_picture(path) as picture:
            try:
                values = np.asarray(picture) if picture.mode == "F" else None
            except UNREADABLE as error:
                raise InputError(f"{path} is not readable as an image: {error}") from None
    if values is not None:
        depth = torch.from_numpy(values.astype(np.float32))
        return invert_depth(depth, near_depth(depth) if near is None else near)
    image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    # Files of JPEG are gray only nearly.
    if float((image.amax(dim=0) - image.amin(dim=0)).max()) > 0.1:
        raise InputError(f"{path}: expected depth as a gray picture, near is white, or as an array; got a colored one")
    return image[:1].contiguous()


def _read_array(path: Path, name: str) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
        if isinstance(values, np.lib.npyio.NpzFile):
            with values:
                if len(values.files) != 1 and name not in values.files:
                    told = ", ".join(values.files) or "none"
                    raise InputError(f"{path}: expected one array, or one that is called {name}, got {told}")
                values = values[name if name in values.files else values.files[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not readable as an array: {str(error)[:200]}") from None
    is_flat = values.ndim >= 2 and 0 not in values.shape and sum(side != 1 for side in values.shape) <= 2
    if values.dtype.kind not in "iuf" or not is_flat:
        raise InputError(f"{path}: expected numbers in rows and columns, got {values.dtype} of shape {values.shape}")
    while values.ndim > 2:  # an axis of one channel, or of one picture
        values = values.squeeze(axis=next(axis for axis, side in enumerate(values.shape) if side == 1))
    return values


def _read_labels(path: Path) -> Int[Tensor, "h w"]:
    if path.suffix.lower() in ARRAYS:
        values = _read_array(path, "ids")
        if values.dtype.kind == "f":
            raise InputError(f"{path}: expected whole numbers for ids, got {values.dtype}")
    else:
        with open_picture(path) as image:
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                raise InputError(
                    f"{path}: expected a gray or indexed picture with a number for each pixel, got mode {image.mode}"
                )
            try:
                values = np.asarray(image)
            except UNREADABLE as error:
                raise InputError(f"{path} is not readable as an image: {error}") from None
    labels = torch.from_numpy(values.astype(np.int64))
    if bool((labels < 0).any()):
        raise InputError(f"{path}: expected ids from 0 on, 0 for sky and 1 for ground; got {int(labels.min())}")
    return labels
