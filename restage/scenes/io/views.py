"""From posed photographs, as a reader found them, to a `Capture`: decoded, straightened, at one size, split.

Every reader ends in `make_capture`. Images are decoded one by one at the asked size, so that memory holds the
capture and a few photographs, not all photographs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io.distortion import Lens, undistortion_of
from restage.scenes.io.images import read_image, read_mask
from restage.scenes.io.ply import Points

__all__ = [
    "HOLD_OUT_EVERY",
    "MAX_FRAMES",
    "Photo",
    "ReadOptions",
    "check_rigid",
    "common_size",
    "make_capture",
    "split_every",
]

HOLD_OUT_EVERY = 8
"""Without a split in the files, every 8th view by name is held out, as in the 3D Gaussian splatting benchmarks."""
MAX_FRAMES = 100_000
MIN_SIDE = 8
ROTATION_TOLERANCE = 1e-2
EXACT_ROTATION = 1e-6
MAX_WORKERS = 4
LARGE_PIXELS = 16_000_000
"""Photographs above this many pixels are decoded one at a time."""
WORKING_BYTES = 48
"""Memory of one photograph's pixel while it is decoded and straightened, roughly."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader makes of a capture."""

    size: int | None = None
    """Longer side of the images in pixels; they are only ever made smaller. None: as they are."""
    hold_out_every: int = HOLD_OUT_EVERY
    """Every so many-th view by name is held out, where the capture has no split of its own; 0 holds out none."""

    def __post_init__(self) -> None:
        if self.hold_out_every < 0 or self.hold_out_every == 1:
            raise InputError(f"expected hold_out_every to be 0 or at least 2, got {self.hold_out_every}")


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One posed photograph, not decoded yet."""

    name: str
    """Its path as the capture's files give it, with forward slashes."""
    path: Path
    width: int
    """Of the image file, in pixels."""
    height: int
    lens: Lens
    """For pictures of this or a similar size."""
    camera_to_world: Float[Tensor, "4 4"]
    """OpenCV axes, float64."""
    mask_path: Path | None = None


class _View(NamedTuple):
    """A decoded photograph without distortion."""

    image: np.ndarray
    """RGB "h w 3"."""
    mask: np.ndarray | None
    """Weights "h w"; None where all are 1."""
    intrinsics: np.ndarray


def make_capture(
    name: str,
    photos: Sequence[Photo],
    *,
    points: Points,
    split: tuple[tuple[int, ...], tuple[int, ...]],
    options: ReadOptions,
) -> Capture:
    """Decode photographs and put them together.

    Args:
        name: Of the capture; opens error messages.
        photos: Sorted by name.
        points: Sparse points in the frame of the cameras.
        split: Indices of training and of held-out views.
        options: The size.

    Raises:
        InputError: a photograph cannot be read, the sizes do not go together, or memory does not suffice.
    """
    width, height = common_size(name, [(photo.width, photo.height) for photo in photos], options.size)
    _check_memory(name, photos, width, height)
    images = torch.empty(len(photos), 3, height, width)
    intrinsics = torch.empty(len(photos), 3, 3)
    masks: list[np.ndarray | None] = [None] * len(photos)

    def load(index: int) -> None:
        view = _load_view(photos[index], width, height)
        images[index] = torch.from_numpy(view.image).permute(2, 0, 1).clamp(0, 1)
        intrinsics[index] = torch.from_numpy(view.intrinsics)
        masks[index] = view.mask

    with ThreadPoolExecutor(max_workers=_num_workers(photos)) as pool:
        list(pool.map(load, range(len(photos))))
    return Capture(
        name=name,
        cameras=Cameras(torch.stack([photo.camera_to_world for photo in photos]).float(), intrinsics, width, height),
        images=images,
        file_names=_file_names([photo.name for photo in photos]),
        points=points.positions,
        point_colors=points.colors,
        train_indices=split[0],
        held_out_indices=split[1],
        masks=_stack_masks(masks, height, width),
    )


def common_size(name: str, sizes: Sequence[tuple[int, int]], size: int | None) -> tuple[int, int]:
    """Width and height of all views: of the smallest photograph, or less.

    Args:
        name: Of the capture; opens error messages.
        sizes: Width and height of each photograph. If they differ, there is a warning, for all come to one size.
        size: Longer side that is asked for.

    Raises:
        InputError: the shapes (width to height) differ by more than rounding, or the size is out of range.
    """
    found = sorted(set(sizes))
    if not found:
        raise InputError(f"{name}: expected at least one image, got none")
    width, height = min(found, key=lambda pair: pair[0] * pair[1])
    if len(found) > 1:
        shown = ", ".join(f"{w}x{h}" for w, h in found[:4]) + (", ..." if len(found) > 4 else "")
        aspects = [w / h for w, h in found]
        if max(aspects) / min(aspects) > 1.02:
            raise InputError(f"{name}: expected images of one shape, got {shown}; crop or leave out the odd ones")
        message = f"{name}: images of {len(found)} sizes ({shown}) are brought to one of {width}x{height} or smaller"
        warnings.warn(message, stacklevel=3)
    longer = max(width, height)
    if size is None:
        return width, height
    if not MIN_SIDE <= size <= longer:
        raise InputError(f"{name}: expected a size from {MIN_SIDE} to {longer} (of the images), got {size}")
    return max(1, round(width * size / longer)), max(1, round(height * size / longer))


def split_every(num_views: int, hold_out_every: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training and held-out views where a capture names none; a single view is never held out."""
    held_out = tuple(range(0, num_views, hold_out_every)) if hold_out_every and num_views > 1 else ()
    return tuple(index for index in range(num_views) if index not in set(held_out)), held_out


def check_rigid(matrix: Float[Tensor, "4 4"], where: str) -> Float[Tensor, "4 4"]:
    """A rigid transform as it is; one that is off by rounding gets the nearest rotation.

    Raises:
        InputError: NaN, infinity, a scale, a shear or a reflection; `where` opens the message.
    """
    if not torch.isfinite(matrix).all():
        raise InputError(f"{where}: expected a finite camera transform, got NaN or infinity")
    rotation = matrix[:3, :3]
    error = float((rotation @ rotation.T - torch.eye(3).to(matrix)).abs().max())
    if error > ROTATION_TOLERANCE:
        raise InputError(f"{where}: expected a rotation in the camera transform, got one that scales or shears")
    if float(torch.linalg.det(rotation)) < 0:
        raise InputError(f"{where}: expected a rotation in the camera transform, got a reflection")
    if error <= EXACT_ROTATION:
        return matrix
    left, _, right = torch.linalg.svd(rotation)
    nearest = matrix.clone()
    nearest[:3, :3] = left @ right
    return nearest


def _check_memory(name: str, photos: Sequence[Photo], width: int, height: int) -> None:
    largest = max(photo.width * photo.height for photo in photos)
    needed = 4 * 4 * len(photos) * width * height + _num_workers(photos) * WORKING_BYTES * largest
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{name}: {len(photos)} images of {width}x{height} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free; give a smaller size"
        )


def _num_workers(photos: Sequence[Photo]) -> int:
    is_large = max(photo.width * photo.height for photo in photos) > LARGE_PIXELS
    return 1 if is_large else min(MAX_WORKERS, os.cpu_count() or 1)


def _load_view(photo: Photo, width: int, height: int) -> _View:
    pixels = read_image(photo.path)
    mask = None if photo.mask_path is None else _load_mask(photo)
    try:
        lens = photo.lens.to_size(photo.width, photo.height)
        intrinsics = lens.intrinsics
        if not lens.is_pinhole:
            undistortion = undistortion_of(lens)
            pixels, intrinsics = undistortion.straighten(pixels), undistortion.intrinsics
            if mask is not None:
                mask = undistortion.straighten(mask)
            elif not undistortion.valid.all():
                mask = undistortion.valid
    except InputError as error:
        raise InputError(f"{photo.path}: {error}") from None
    if (photo.width, photo.height) != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        intrinsics = intrinsics * np.array([[width / photo.width], [height / photo.height], [1.0]])
    return _View(pixels, mask, intrinsics)


def _load_mask(photo: Photo) -> np.ndarray:
    """The mask at the photograph's size; masks are often kept smaller."""
    assert photo.mask_path is not None
    mask = read_mask(photo.mask_path)
    height, width = mask.shape
    if abs(width * photo.height / (height * photo.width) - 1) > 0.02:
        raise InputError(
            f"{photo.mask_path}: expected a mask of the shape {photo.width}x{photo.height}, got {width}x{height}"
        )
    if (width, height) == (photo.width, photo.height):
        return mask
    return cv2.resize(mask, (photo.width, photo.height), interpolation=cv2.INTER_LINEAR)


def _stack_masks(masks: Sequence[np.ndarray | None], height: int, width: int) -> Tensor | None:
    if all(mask is None or bool((mask == 1).all()) for mask in masks):
        return None
    stacked = torch.ones(len(masks), height, width)
    for index, mask in enumerate(masks):
        if mask is not None:
            stacked[index] = torch.from_numpy(mask).clamp(0, 1)
    return stacked


def _file_names(paths: list[str]) -> tuple[str, ...]:
    """Names without folders; with them, joined by underscores, where that would make two alike."""
    names = [PurePosixPath(path).name for path in paths]
    stems = {PurePosixPath(name).stem for name in names}
    return tuple(names) if len(stems) == len(names) else tuple(path.lstrip("./").replace("/", "_") for path in paths)
