"""LLFF captures: `poses_bounds.npy` beside a folder of images, as of the Local Light Field Fusion code.

A row an image: a 3x5 matrix and two depth bounds. The matrix has the camera's down, right and back, its position, and
height, width and focal length in pixels (https://github.com/Fyusion/LLFF#using-your-own-poses-without-running-colmap).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from restage.records import InputError
from restage.scenes.io import posed
from restage.scenes.io.images import list_images

__all__ = ["LLFF"]

IMAGE_FOLDERS = ("images", *posed.SMALLER_COPIES, "")
NUM_COLUMNS = 17
MAX_BYTES = posed.MAX_FRAMES * NUM_COLUMNS * 8 + 1024


def _find_llff(path: Path) -> Path | None:
    return path / "poses_bounds.npy" if (path / "poses_bounds.npy").is_file() else None


def _read_llff(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read poses and the images they are for, which go together in the order of the names.

    Raises:
        InputError: the file is broken, or there is another number of images.
    """
    table = _read_table(path)
    folders = [path.parent / place for place in IMAGE_FOLDERS]
    images = next((found for folder in folders if (found := list_images(folder))), [])
    if len(images) != len(table):
        raise InputError(f"{path}: expected an image a pose, got {len(images)} images for {len(table)} poses")
    photos = []
    for image, row in zip(images, table, strict=True):
        where = f"{path}, {image.name}"
        matrix = torch.from_numpy(row[:15].reshape(3, 5).copy())
        height, width, focal_px = matrix[:, 4].tolist()
        down, right, back = matrix[:, 0], matrix[:, 1], matrix[:, 2]
        camera_to_world = torch.eye(4, dtype=torch.float64)
        camera_to_world[:3] = torch.stack([right, -down, back, matrix[:, 3]], dim=1)
        lens = (width, height, focal_px, focal_px, width / 2, height / 2)
        photos.append(posed.open_pinhole(image, lens, camera_to_world, where))
    posed.check_once(photos, path)
    return posed.PosedPhotos(photos=photos, points=posed.no_points())


LLFF = posed.SceneFormat(_find_llff, _read_llff, "poses_bounds.npy (LLFF)")


def _read_table(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: expected at most {posed.MAX_FRAMES} poses, got {path.stat().st_size} bytes")
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise InputError(f"{path} is not readable as a numpy array: {str(error)[:200]}") from None
    is_table = isinstance(table, np.ndarray) and table.ndim == 2 and table.shape[1] == NUM_COLUMNS
    if not is_table or table.dtype.kind not in "fiu" or not len(table):
        shape = getattr(table, "shape", "no array")
        raise InputError(f"{path}: expected numbers of shape (n, {NUM_COLUMNS}), got {shape}")
    return table.astype(np.float64)
