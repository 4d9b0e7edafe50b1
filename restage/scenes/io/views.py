"""From posed photographs, as a reader found them, to a `Capture`: decoded, straightened, upright, at one size.

Images are decoded one by one at the asked size, so that memory holds the capture and a few photographs, not all
photographs. The world is moved and scaled here, once, if its coordinates are too large for float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.run.limits import free_memory_bytes, num_usable_cores
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io.distortion import undistortion_of
from restage.scenes.io.images import read_image, read_mask, turn_camera, turn_intrinsics, unexif
from restage.scenes.io.posed import Photo, PosedPhotos, ReadOptions, note, split_every

__all__ = ["Layout", "lay_out", "make_capture", "world_change"]

MIN_SIDE = 8
MAX_WORKERS = 4
LARGE_PIXELS = 16_000_000
"""Photographs above this many pixels are decoded one at a time."""
WORKING_BYTES = 48
"""Memory of one photograph's pixel while it is decoded and straightened, roughly."""
SAME_SHAPE = 1.02
FAR = 100.0
"""Scene sizes from the origin beyond which the world is moved: float32 then has less than 1e-5 of the size."""
NEAREST_SIZE, FARTHEST_SIZE = 0.5, 20.0
"""Sizes of a scene that are left as they are; rasterizers draw nothing nearer to a camera than 0.05."""
COARSE = 1e-3
"""Distance of neighboring float32 numbers, as a share of the scene's size, from which on points count as rounded."""
MOVED_SIZE = 4.0
"""Size of a scene whose world was moved or scaled."""


class Layout(NamedTuple):
    """The one size of all views, and where on it each photograph lies."""

    width: int
    height: int
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each photograph on its view, in the middle; what is beside it does not count."""


class _View(NamedTuple):
    """A decoded photograph without distortion, upright: RGB "h w 3", weights "h w" or None where all are 1."""

    image: np.ndarray
    mask: np.ndarray | None
    intrinsics: np.ndarray


def make_capture(name: str, posed: PosedPhotos, options: ReadOptions) -> Capture:
    """Decode photographs and put them together."""
    photos, notes = posed.photos, list(posed.notes)
    turned = sum(photo.orientation.is_guess for photo in photos)
    if turned:
        note(
            notes,
            f"{name}: {turned} pictures are to be turned by their EXIF orientation, and their shape does not tell "
            "whether the cameras are for the stored or for the turned pixels; they are taken to be for the stored ones",
        )
    layout = lay_out(name, [photo.shown_size for photo in photos], options.size, notes)
    num_workers = _num_workers(name, photos, layout)
    images = torch.empty(len(photos), 3, layout.height, layout.width)
    intrinsics = torch.empty(len(photos), 3, 3)
    masks: list[np.ndarray | None] = [None] * len(photos)

    def load(index: int) -> None:
        view = _place(_load_view(photos[index]), layout, index)
        images[index] = torch.from_numpy(view.image).permute(2, 0, 1).clamp(0, 1)
        intrinsics[index] = torch.from_numpy(view.intrinsics)
        masks[index] = view.mask

    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        list(pool.map(load, range(len(photos))))
    poses = torch.stack([turn_camera(photo.camera_to_world, photo.orientation.quarters) for photo in photos]).double()
    points = _unrounded(name, posed.points.positions, poses[:, :3, 3], notes)
    change = world_change(poses, points)
    own_to_world = posed.own_to_world
    if change is not None:
        own_to_world = change if own_to_world is None else change @ own_to_world
        scale = float(change[0, 0])
        poses[:, :3, 3] = scale * poses[:, :3, 3] + change[:3, 3]
        points = scale * points + change[:3, 3]
    split = posed.split or split_every(len(photos), options.hold_out_every)
    return Capture(
        name=name,
        cameras=Cameras(poses.float(), intrinsics, layout.width, layout.height),
        images=images,
        file_names=_file_names([photo.name for photo in photos]),
        points=points.float(),
        point_colors=posed.points.colors,
        train_indices=split.train,
        held_out_indices=split.held_out,
        masks=_stack_masks(masks, layout),
        own_to_world=own_to_world,
        notes=tuple(notes),
    )


def _unrounded(name: str, positions: Tensor, cameras: Tensor, notes: list[str]) -> Float[Tensor, "m 3"]:
    """Sparse points, float64; those that float32 has pulled onto a coarse grid are spread over its cells at random.

    A file of geo-referenced points in float32 has them half a meter apart. Splats that start on such a grid hide each
    other: the bear came out 1.6 dB worse, and .3 dB with its points spread.
    """
    points = positions.double()
    if positions.dtype != torch.float32 or not len(points):
        return points
    cells = torch.from_numpy(np.spacing(positions.abs().numpy())).double()
    size = float((cameras - points.median(dim=0).values).norm(dim=1).median())
    if not float(cells.max()) > COARSE * size:
        return points
    note(
        notes,
        f"{name}: sparse points lie on a grid {float(cells.max()):g} apart, since their file has float32 far from the "
        "origin; they are spread over its cells (keep them as doubles for a better fit)",
    )
    shares = torch.rand(points.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return points + (shares - 0.5) * cells


def world_change(poses: Float[Tensor, "n 4 4"], points: Float[Tensor, "m 3"]) -> Float[Tensor, "4 4"] | None:
    """How a world is moved and scaled so that float32 and the rasterizers' near plane suit it.

    The size of a scene is the median distance of its cameras from what they look at: from the sparse points if there
    are any, otherwise from the middle of the cameras. Ordinary worlds keep their numbers.

    Returns:
        A 4x4 matrix, float64, of one scale and a shift; None for a world that stays as it is.
    """
    positions = poses[:, :3, 3]
    center = (points if len(points) else positions).median(dim=0).values
    size = float((positions - center).norm(dim=1).median())
    if not size > 0:  # one camera without points: its distance from the origin is all there is
        size = 1.0
    is_near = float(center.norm()) <= FAR * size
    if is_near and NEAREST_SIZE <= size <= FARTHEST_SIZE:
        return None
    scale = MOVED_SIZE / size
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] *= scale
    change[:3, 3] = -scale * center
    return change


def lay_out(name: str, sizes: Sequence[tuple[int, int]], size: int | None, notes: list[str]) -> Layout:
    """Find one size for all views: of the smallest photograph, or less.

    Photographs of several shapes, such as portraits among landscapes, come to one longer side and lie in the middle of
    a view that holds all of them.

    `size` is the longer side that is asked for; `notes` gets a line if sizes differ.
    """
    found = sorted(set(sizes))
    if not found:
        raise InputError(f"{name}: expected at least one image, got none")
    longest = min(max(pair) for pair in found)
    if size is not None and not MIN_SIDE <= size <= longest:
        raise InputError(f"{name}: expected a size from {MIN_SIDE} to {longest} (of the images), got {size}")
    shown = ", ".join(f"{w}x{h}" for w, h in found[:4]) + (", ..." if len(found) > 4 else "")
    aspects = [w / h for w, h in found]
    if max(aspects) / min(aspects) > SAME_SHAPE:
        longest = size or longest
        placed = tuple((_scaled(w, longest / max(w, h)), _scaled(h, longest / max(w, h))) for w, h in sizes)
        width, height = max(w for w, _ in placed), max(h for _, h in placed)
        note(
            notes,
            f"{name}: images of several shapes ({shown}) are shown on views of {width}x{height}; the borders beside "
            "them do not count",
        )
        return Layout(width, height, placed)
    width, height = min(found, key=lambda pair: pair[0] * pair[1])
    if len(found) > 1:
        note(notes, f"{name}: images of {len(found)} sizes ({shown}) are brought to one of {width}x{height} or smaller")
    if size is not None:
        longer = max(width, height)
        width, height = _scaled(width, size / longer), _scaled(height, size / longer)
    return Layout(width, height, ((width, height),) * len(sizes))


def _scaled(side: int, factor: float) -> int:
    return max(1, round(side * factor))


def _num_workers(name: str, photos: Sequence[Photo], layout: Layout) -> int:
    """How many photographs are decoded at a time; refuses what memory does not hold."""
    largest = max(photo.lens.width * photo.lens.height for photo in photos)
    num_workers = 1 if largest > LARGE_PIXELS else min(MAX_WORKERS, num_usable_cores())
    needed = 4 * 4 * len(photos) * layout.width * layout.height + num_workers * WORKING_BYTES * largest
    available = free_memory_bytes()
    if needed > available:
        raise InputError(
            f"{name}: {len(photos)} images of {layout.width}x{layout.height} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free; give a smaller size"
        )
    return num_workers


def _load_view(photo: Photo) -> _View:
    """A photograph as its camera model has it, then without distortion, then upright."""
    lens, orientation = photo.lens, photo.orientation
    pixels = read_image(photo.path) if photo.has_picture else np.zeros((lens.height, lens.width, 3), np.float32)
    if orientation.before != 1:
        pixels = unexif(pixels, orientation.before)
    mask = None if photo.mask_path is None else _load_mask(photo)
    intrinsics = lens.intrinsics
    try:
        if not lens.is_pinhole:
            undistortion = undistortion_of(lens)
            pixels, intrinsics = undistortion.straighten(pixels), undistortion.intrinsics
            if mask is not None:
                mask = undistortion.straighten(mask)
            elif not undistortion.valid.all():
                mask = undistortion.valid
    except InputError as error:
        raise InputError(f"{photo.path}: {error}") from None
    if orientation.quarters:
        pixels = np.ascontiguousarray(np.rot90(pixels, -orientation.quarters))
        mask = None if mask is None else np.ascontiguousarray(np.rot90(mask, -orientation.quarters))
        intrinsics = turn_intrinsics(intrinsics, orientation.quarters, lens.width, lens.height)
    return _View(pixels, mask, intrinsics)


def _place(view: _View, layout: Layout, index: int) -> _View:
    """Bring a photograph to its size, and put it in the middle of the view if that is larger."""
    height, width = view.image.shape[:2]
    size = layout.sizes[index]
    image, mask, intrinsics = view
    if (width, height) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        intrinsics = intrinsics * np.array([[size[0] / width], [size[1] / height], [1.0]])
    if size == (layout.width, layout.height):
        return _View(image, mask, intrinsics)
    left, top = (layout.width - size[0]) // 2, (layout.height - size[1]) // 2
    inside = np.s_[top : top + size[1], left : left + size[0]]
    whole, counted = np.zeros((layout.height, layout.width, 3), np.float32), np.zeros((layout.height, layout.width))
    whole[inside], counted[inside] = image, 1.0 if mask is None else mask
    return _View(whole, counted.astype(np.float32), intrinsics + np.array([[0, 0, left], [0, 0, top], [0, 0, 0]]))


def _load_mask(photo: Photo) -> np.ndarray:
    """The mask at the photograph's size and the same way up; masks are often kept smaller."""
    assert photo.mask_path is not None
    mask = read_mask(photo.mask_path)
    size = (photo.lens.width, photo.lens.height)
    if photo.orientation.before != 1 and not _has_shape(mask, size):
        mask = unexif(mask, photo.orientation.before)
    if not _has_shape(mask, size):
        found = f"{mask.shape[1]}x{mask.shape[0]}"
        raise InputError(f"{photo.mask_path}: expected a mask of the shape {size[0]}x{size[1]}, got {found}")
    return mask if mask.shape[::-1] == size else cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)


def _has_shape(mask: np.ndarray, size: tuple[int, int]) -> bool:
    return abs(mask.shape[1] * size[1] / (mask.shape[0] * size[0]) - 1) <= SAME_SHAPE - 1


def _stack_masks(masks: Sequence[np.ndarray | None], layout: Layout) -> Tensor | None:
    if all(mask is None or bool((mask == 1).all()) for mask in masks):
        return None
    ones = np.ones((layout.height, layout.width), np.float32)
    return torch.stack([torch.from_numpy(ones if mask is None else mask).clamp(0, 1) for mask in masks])


def _file_names(paths: list[str]) -> tuple[str, ...]:
    """Names without folders; with them, joined by underscores, where that would make two alike."""
    names = [PurePosixPath(path).name for path in paths]
    stems = {PurePosixPath(name).stem for name in names}
    return tuple(names) if len(stems) == len(names) else tuple(path.lstrip("./").replace("/", "_") for path in paths)
