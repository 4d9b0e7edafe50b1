"""COLMAP models, text or binary: cameras, images and points of `sparse/0` beside a folder of images.

The formats are few and fixed (https://colmap.github.io/format.html), so they are read here rather than through
pycolmap, whose wheel is large; `tests/scenes/test_io_colmap.py` compares with it where it is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from restage.records import InputError
from restage.scenes.io import posed
from restage.scenes.io.colmap_files import ModelCamera, ModelImage, read_cameras, read_images, read_points
from restage.scenes.io.distortion import Lens, LensModel
from restage.scenes.io.images import list_images
from restage.scenes.io.ply import Points

__all__ = ["COLMAP", "ModelFiles", "find_model", "lens_of", "pose_of", "read_colmap_points"]

MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "0")
"""Where a model lies, seen from the folder that a user names."""
IMAGE_FOLDERS = ("images", "input", *posed.SMALLER_COPIES)
"""Names of image folders; `input` is that of the converter of 3D Gaussian splatting."""
LENS_MODELS: dict[str, LensModel] = {
    **dict.fromkeys(("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"), "fisheye"),
    "FOV": "fov",
    "THIN_PRISM_FISHEYE": "thin_prism_fisheye",
}
"""All other models of COLMAP are Brown's, or parts of it."""
MAX_LEVELS_UP = 3
"""Number of folders between `colmap/sparse/0` and the one that holds the images."""
ENOUGH = 0.5
"""Share of the pictures that should have found a place in the model."""


class ModelFiles(NamedTuple):
    """A COLMAP model: a folder with cameras, images and points3D, all as `.bin` or all as `.txt`."""

    folder: Path
    suffix: str


def find_model(folder: Path) -> ModelFiles | None:
    """Return the model in a folder or in one of the usual places below it, or None; binary is preferred."""
    found = (_model_in(folder / place) for place in MODEL_FOLDERS)
    return next((model for model in (*found, *_numbered(folder)) if model is not None), None)


def _model_in(folder: Path) -> ModelFiles | None:
    both = [s for s in (".bin", ".txt") if all((folder / f"{n}{s}").is_file() for n in ("cameras", "images"))]
    return ModelFiles(folder, both[0]) if both else None


def _numbered(folder: Path) -> list[ModelFiles]:
    """The models beside each other in folders 0, 1, 2, ...: parts of a scene that COLMAP could not connect."""
    for place in ("sparse", "colmap/sparse", ""):
        folders = [path for path in (folder / place).glob("*") if path.name.isdecimal()]
        found = [_model_in(path) for path in sorted(folders, key=lambda path: int(path.name))]
        if any(found):
            return [model for model in found if model is not None]
    return []


def _read_colmap(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read the model with the most images, its images, and masks where `masks/<image name>.png` lies beside them.

    The world stays as it is, which with COLMAP is seldom upright; `turn_upright` of `scenes/capture.py` makes it so.
    """
    first = find_model(path)
    assert first is not None
    notes: list[str] = []
    siblings = _numbered(path) if _model_in(path) is None else []
    candidates = siblings if first in siblings else [first]
    models = [(model, read_images(model.folder / f"images{model.suffix}")) for model in candidates]
    model, images = max(models, key=lambda pair: len(pair[1]))
    images = sorted(images, key=lambda image: image.name)
    if len(models) > 1:
        counts = ", ".join(f"{other.folder.name} with {len(found)}" for other, found in models)
        posed.note(notes, f"{name}: of {len(models)} models (sparse/{counts} images), {model.folder.name} is used")
    place = model.folder / f"images{model.suffix}"
    if not 0 < len(images) <= posed.MAX_FRAMES:
        raise InputError(f"{place}: expected 1 to {posed.MAX_FRAMES} images with a pose, got {len(images)}")
    cameras = read_cameras(model.folder / f"cameras{model.suffix}")
    folder = _find_images(model.folder, images)
    finder = posed.PictureFinder(folder, follow_paths=options.follow_paths)
    found = (_make_photo(image, cameras, finder, place) for image in images)
    photos = [photo for photo in found if photo is not None]
    finder.report(place, notes, len(images))
    posed.check_once(photos, place)
    num_pictures = sum(len(list_images(place)) for place in {photo.path.parent for photo in photos})
    if len(photos) < ENOUGH * num_pictures:
        posed.note(
            notes,
            f"{name}: ONLY {len(photos)} OF {num_pictures} PICTURES have a place in the model; what the others show "
            "is missing from the scene",
        )
    return posed.PosedPhotos(photos=photos, points=read_colmap_points(model), notes=tuple(notes))


COLMAP = posed.SceneFormat(
    lambda path: path if path.is_dir() and find_model(path) is not None else None,
    _read_colmap,
    "a COLMAP model (cameras.bin, images.bin, or .txt; here or in sparse/0)",
)


def read_colmap_points(model: ModelFiles) -> Points:
    """Return the sparse points in COLMAP's own world, float64; none if the model has no file of points."""
    path = model.folder / f"points3D{model.suffix}"
    return read_points(path) if path.is_file() else posed.no_points()


def _find_images(folder: Path, images: Sequence[ModelImage]) -> Path:
    """The folder that the images lie in: `images` or `input` beside the model or up to three levels above."""
    levels = [folder, *folder.resolve().parents[:MAX_LEVELS_UP]]
    places = [level / place for level in levels for place in (*IMAGE_FOLDERS, "") if (level / place).is_dir()]
    # By whole names before tails of them, which could be found in the wrong folder; the first images may be missing.
    for by_tail, image in itertools.product((False, True), images[:5]):
        for place in places:
            if posed.PictureFinder(place, follow_paths=False).find(image.name, by_tail=by_tail) is not None:
                return place
    named = [place for place in places if place.name in IMAGE_FOLDERS]
    if named:
        return named[0]
    raise InputError(
        f"{folder}: expected a folder 'images' with {images[0].name[:80]!r} beside the model or above, got none"
    )


def _make_photo(
    image: ModelImage, cameras: dict[int, ModelCamera], finder: posed.PictureFinder, path: Path
) -> posed.Photo | None:
    where = f"{path}, image {image.name[:80]!r}"
    if image.camera_id not in cameras:
        raise InputError(f"{where}: expected its camera in the model, got {image.camera_id}; write the model anew")
    picture = finder.find(image.name)
    if picture is None:
        return None
    mask_path = finder.folder.parent / "masks" / f"{image.name}.png"
    return posed.open_photo(
        name=image.name.replace("\\", "/"),
        path=picture,
        lens=lambda _: lens_of(cameras[image.camera_id]),
        camera_to_world=pose_of(image, where),
        where=where,
        mask_path=mask_path if mask_path.is_file() else None,
    )


def pose_of(image: ModelImage, where: str) -> Tensor:
    """Return `camera_to_world` of an image of a model, float64."""
    world_to_camera = torch.eye(4, dtype=torch.float64)
    world_to_camera[:3, :3] = posed.rotation_of(image.rotation_wxyz, where)
    world_to_camera[:3, 3] = torch.tensor(image.translation, dtype=torch.float64)
    world_to_camera = posed.check_rigid(world_to_camera, where)
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3, :3] = world_to_camera[:3, :3].T
    camera_to_world[:3, 3] = -camera_to_world[:3, :3] @ world_to_camera[:3, 3]
    return camera_to_world


def lens_of(camera: ModelCamera) -> Lens:
    """The lens of a camera of a model."""
    has_one_focal = camera.model.startswith(("SIMPLE", "RADIAL"))
    focal_x, focal_y, center_x, center_y, *rest = (camera.params[0],) * has_one_focal + camera.params
    return Lens(
        width=camera.width,
        height=camera.height,
        focal_x_px=focal_x,
        focal_y_px=focal_y,
        center_x_px=center_x,
        center_y_px=center_y,
        coefficients=tuple(rest),
        model=LENS_MODELS.get(camera.model, "brown"),
    )
