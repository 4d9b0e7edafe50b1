"""COLMAP models, text or binary: cameras, images and points of `sparse/0` beside a folder of images.

The formats are few and fixed (https://colmap.github.io/format.html), so they are read here rather than through
pycolmap, whose wheel is large; `tests/scenes/test_io_colmap.py` compares with it where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from restage.records import InputError
from restage.scenes.capture import Capture
from restage.scenes.io.colmap_files import ModelCamera, ModelImage, PointArrays, read_cameras, read_images, read_points
from restage.scenes.io.distortion import Lens
from restage.scenes.io.images import path_inside, read_head
from restage.scenes.io.ply import Points
from restage.scenes.io.views import MAX_FRAMES, Photo, ReadOptions, check_rigid, make_capture, split_every

__all__ = ["ModelFiles", "find_model", "read_colmap", "read_colmap_points"]

MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "0")
"""Where a model lies, seen from the folder that a user names."""
IMAGE_FOLDERS = ("images", "input")
"""Names of image folders; `input` is that of the converter of 3D Gaussian splatting."""
MAX_LEVELS_UP = 3
"""Of folders between `colmap/sparse/0` and the one that holds the images."""


class ModelFiles(NamedTuple):
    """A COLMAP model: a folder with cameras, images and points3D, all as `.bin` or all as `.txt`."""

    folder: Path
    suffix: str


def find_model(folder: Path) -> ModelFiles | None:
    """The model in a folder or in one of the usual places below it; binary is preferred, None if there is none."""
    for place in MODEL_FOLDERS:
        for suffix in (".bin", ".txt"):
            if all((folder / place / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                return ModelFiles(folder / place, suffix)
    return None


def read_colmap(model: ModelFiles, name: str, options: ReadOptions, *, image_folder: Path | None = None) -> Capture:
    """Read a COLMAP model and its images; masks too, where `masks/<image name>.png` lies beside them.

    The world stays as it is, which with COLMAP is seldom upright; `turn_upright` of `scenes/capture.py` makes it so.

    Args:
        model: Its files.
        name: Of the capture.
        options: Size, and what is held out.
        image_folder: With the images; None looks for it beside the model and above.

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file.
    """
    path = model.folder / f"images{model.suffix}"
    cameras = read_cameras(model.folder / f"cameras{model.suffix}")
    images = sorted(read_images(path), key=lambda image: image.name)
    if not 0 < len(images) <= MAX_FRAMES:
        raise InputError(f"{path}: expected 1 to {MAX_FRAMES} images with a pose, got {len(images)}")
    for first, second in zip(images, images[1:], strict=False):
        if first.name == second.name:
            raise InputError(f"{path}: expected each image once, got {first.name} twice")
    folder = image_folder or _find_images(model.folder, images[0].name)
    photos = [_make_photo(image, cameras, folder, path) for image in images]
    split = split_every(len(photos), options.hold_out_every)
    return make_capture(name, photos, points=read_colmap_points(model), split=split, options=options)


def read_colmap_points(model: ModelFiles) -> Points:
    """The sparse points in COLMAP's own world; none if the model has no file of points."""
    path = model.folder / f"points3D{model.suffix}"
    if not path.is_file():
        return Points(torch.zeros(0, 3), torch.zeros(0, 3))
    found: PointArrays = read_points(path)
    return Points(torch.from_numpy(found.positions).float(), torch.from_numpy(found.colors_uint8).float() / 255)


def _find_images(folder: Path, name: str) -> Path:
    """The folder that an image lies in: `images` or `input` beside the model or up to three levels above."""
    levels = [folder, *folder.resolve().parents[:MAX_LEVELS_UP]]
    for level in levels:
        for place in (*IMAGE_FOLDERS, ""):
            if (level / place / name).is_file():
                return level / place
    for level in levels:
        if (level / "images").is_dir():
            return level / "images"
    raise InputError(f"{folder}: expected a folder 'images' with {name[:80]!r} beside the model or above, got none")


def _make_photo(image: ModelImage, cameras: dict[int, ModelCamera], folder: Path, path: Path) -> Photo:
    where = f"{path}, image {image.name[:80]!r}"
    if image.camera_id not in cameras:
        raise InputError(f"{where}: expected its camera in the model, got {image.camera_id}; write the model anew")
    image_path = path_inside(folder, image.name, where)
    mask_path = path_inside(folder.parent / "masks", f"{image.name}.png", where)
    width, height, _ = read_head(image_path)
    try:
        lens = lens_of(cameras[image.camera_id]).to_size(width, height)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    world_to_camera = torch.eye(4, dtype=torch.float64)
    world_to_camera[:3, :3] = _rotation(image.rotation_wxyz, where)
    world_to_camera[:3, 3] = torch.tensor(image.translation, dtype=torch.float64)
    world_to_camera = check_rigid(world_to_camera, where)
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3, :3] = world_to_camera[:3, :3].T
    camera_to_world[:3, 3] = -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
    return Photo(
        name=image.name,
        path=image_path,
        width=width,
        height=height,
        lens=lens,
        camera_to_world=camera_to_world,
        mask_path=mask_path if mask_path.is_file() else None,
    )


def _rotation(wxyz: Sequence[float], where: str) -> Tensor:
    """Rotation matrix of a quaternion, float64.

    Raises:
        InputError: its length is not 1; COLMAP writes unit quaternions.
    """
    quaternion = torch.tensor(wxyz, dtype=torch.float64)
    if not abs(float(quaternion.norm()) - 1) < 1e-2:
        raise InputError(f"{where}: expected a unit quaternion, got {[round(value, 4) for value in wxyz]}")
    w, x, y, z = (quaternion / quaternion.norm()).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def lens_of(camera: ModelCamera) -> Lens:
    """The lens of a camera of a model.

    Raises:
        InputError: a model of camera that OpenCV's two do not cover, or absurd numbers.
    """
    p = camera.params
    if camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"):
        focal_x, focal_y, center_x, center_y, rest = p[0], p[0], p[1], p[2], p[3:]
    else:
        focal_x, focal_y, center_x, center_y, rest = p[0], p[1], p[2], p[3], p[4:]
    return Lens(
        width=camera.width,
        height=camera.height,
        focal_x_px=focal_x,
        focal_y_px=focal_y,
        center_x_px=center_x,
        center_y_px=center_y,
        coefficients=tuple(rest),
        is_fisheye=camera.model.endswith("FISHEYE"),
    )
