"""nerfstudio captures: a folder with transforms.json, images, masks and sparse points, read and written.

The only place where OpenGL camera axes (x right, y up, z back) meet our OpenCV ones. The fields are those of
nerfstudio 1.1 (`nerfstudio/data/dataparsers/nerfstudio_dataparser.py`); unknown ones are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.records import InputError, read_json, write_atomically, write_json
from restage.scenes.capture import Capture
from restage.scenes.io.colmap import find_model, read_colmap_points
from restage.scenes.io.distortion import Lens
from restage.scenes.io.images import path_inside, read_head
from restage.scenes.io.ply import Points, read_points, write_points
from restage.scenes.io.views import MAX_FRAMES, Photo, ReadOptions, check_rigid, make_capture, split_every

__all__ = ["read_nerfstudio", "write_capture"]

PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""nerfstudio takes all of them for a perspective camera with whatever of k1 k2 k3 p1 p2 is given."""
FISHEYE_MODELS = ("OPENCV_FISHEYE",)
AXES = torch.tensor([1.0, -1.0, -1.0, 1.0])
"""Column factors between OpenGL and OpenCV cameras, both ways."""
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""In the order of the field `distortion_params`."""
OLD_APPLIED_TRANSFORM = ((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, -1, 0))
"""From COLMAP's world to that of folders from before the field `applied_transform`, as nerfstudio takes it."""

OWN_TO_WORLD = "restage_own_to_world"
"""Our own field, which nerfstudio ignores: the 3x3 rotation that brought a user's capture into this file's frame."""


def read_nerfstudio(path: Path, name: str, options: ReadOptions) -> Capture:
    """Read a nerfstudio folder; the world stays as it is, lens distortion is taken out of images and masks.

    Args:
        path: The JSON file; all paths in it must stay inside its folder.
        name: Of the capture.
        options: Size, and what is held out if the file has no split.

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file and the frame.
    """
    meta = _read_meta(path)
    photos = _read_photos(meta, path)
    split = _split(meta, [photo.name for photo in photos], path, options)
    capture = make_capture(name, photos, points=_read_sparse(meta, path), split=split, options=options)
    return replace(capture, own_to_world=_read_own_to_world(meta, path))


def write_capture(capture: Capture, folder: Path) -> None:
    """Write a capture as a nerfstudio folder: PNG images, masks if any, sparse points, `transforms.json` last."""
    stems = [Path(name).stem for name in capture.file_names]
    if len(set(stems)) != len(stems):
        raise InputError(f"{capture.name}: expected file names that differ without their ending")
    paths = [f"images/{stem}.png" for stem in stems]
    mask_paths = [f"masks/{stem}.png" for stem in stems] if capture.masks is not None else []
    for path, image in zip(paths, capture.images, strict=True):
        _write_png(folder / path, image.permute(1, 2, 0))
    for path, mask in zip(mask_paths, capture.masks if capture.masks is not None else (), strict=True):
        _write_png(folder / path, mask)
    if len(capture.points):
        write_points(capture.points, folder / "sparse_pc.ply", colors=capture.point_colors)
    frames: list[dict[str, Any]] = [
        {"file_path": path, "transform_matrix": (camera_to_world * AXES).tolist(), **_intrinsics_entries(intrinsics)}
        for path, camera_to_world, intrinsics in zip(
            paths, capture.cameras.camera_to_world, capture.cameras.intrinsics, strict=True
        )
    ]
    for frame, mask_path in zip(frames, mask_paths, strict=False):
        frame["mask_path"] = mask_path
    held_out = [paths[index] for index in capture.held_out_indices]
    meta = {
        "camera_model": "PINHOLE",
        "w": capture.cameras.width,
        "h": capture.cameras.height,
        "frames": frames,
        "train_filenames": [paths[index] for index in capture.train_indices],
        "val_filenames": held_out,
        "test_filenames": held_out,
        **({"ply_file_path": "sparse_pc.ply"} if len(capture.points) else {}),
        **({} if capture.own_to_world is None else {OWN_TO_WORLD: capture.own_to_world.tolist()}),
    }
    write_json(folder / "transforms.json", meta)


def _write_png(path: Path, pixels: Tensor) -> None:
    with write_atomically(path) as temporary:
        Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(temporary)


def _intrinsics_entries(intrinsics: Float[Tensor, "3 3"]) -> dict[str, float]:
    return {
        "fl_x": float(intrinsics[0, 0]),
        "fl_y": float(intrinsics[1, 1]),
        "cx": float(intrinsics[0, 2]),
        "cy": float(intrinsics[1, 2]),
    }


def _read_meta(path: Path) -> Mapping[str, Any]:
    """The file's top level, with its list of frames checked for length."""
    meta = read_json(path)
    if not isinstance(meta, Mapping):
        raise InputError(f"{path}: expected a JSON object with a list 'frames', got {str(meta)[:40]}")
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: expected a list 'frames' with at least one frame, got {str(frames)[:40]}")
    if len(frames) > MAX_FRAMES:
        raise InputError(f"{path}: expected at most {MAX_FRAMES} frames, got {len(frames)}")
    return meta


def _read_photos(meta: Mapping[str, Any], path: Path) -> list[Photo]:
    """All frames, sorted by path."""
    photos = [_read_photo(frame, meta, path, index) for index, frame in enumerate(meta["frames"])]
    photos.sort(key=lambda photo: photo.name)
    for first, second in zip(photos, photos[1:], strict=False):
        if first.name == second.name:
            raise InputError(f"{path}: expected each image once, got {first.name} twice")
    return photos


def _read_photo(frame: Any, meta: Mapping[str, Any], path: Path, index: int) -> Photo:
    where = f"{path}, frame {index}"
    if not isinstance(frame, Mapping) or not isinstance(frame.get("file_path"), str):
        raise InputError(f"{where}: expected an object with a file_path, got {str(frame)[:40]}")
    image_path = path_inside(path.parent, frame["file_path"], where)
    # Synthetic captures from Blender name their images without an ending.
    image_path = image_path if image_path.suffix else image_path.with_suffix(".png")
    width, height, _ = read_head(image_path)
    mask = frame.get("mask_path")
    if not isinstance(mask, str | None):
        raise InputError(f"{where}: expected mask_path to be a path, got {str(mask)[:40]}")
    return Photo(
        name=_normal(frame["file_path"]),
        path=image_path,
        width=width,
        height=height,
        lens=_read_lens({**meta, **frame}, width, height, where),
        camera_to_world=check_rigid(_read_matrix(frame.get("transform_matrix"), where), where) * AXES,
        mask_path=None if mask is None else path_inside(path.parent, mask, where),
    )


def _read_matrix(value: Any, where: str, name: str = "transform_matrix") -> Tensor:
    """The 4x4 matrix of a 3x4 or 4x4 list, float64."""
    try:
        matrix = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        matrix = torch.zeros(0, dtype=torch.float64)
    if tuple(matrix.shape) not in ((4, 4), (3, 4)):
        raise InputError(f"{where}: expected a 4x4 {name}, got shape {tuple(matrix.shape)}")
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3] = matrix[:3]
    return whole


def _read_own_to_world(meta: Mapping[str, Any], path: Path) -> Tensor | None:
    """What `write_capture` has left of a turn."""
    rows = meta.get(OWN_TO_WORLD)
    if rows is None:
        return None
    is_square = isinstance(rows, list) and len(rows) == 3 and all(isinstance(row, list) for row in rows)
    where = f"{path}: {OWN_TO_WORLD}"
    matrix = _read_matrix([[*row, 0.0] for row in rows] if is_square else rows, where, OWN_TO_WORLD)
    return check_rigid(matrix, where)[:3, :3]


def _read_lens(values: Mapping[str, Any], width: int, height: int, where: str) -> Lens:
    """The lens for the image as it is, out of a frame's values with those of the top level behind them."""
    model = values.get("camera_model", "OPENCV")
    if model not in (*PINHOLE_MODELS, *FISHEYE_MODELS):
        known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
        raise InputError(f"{where}: expected camera_model to be one of {known}, got {str(model)[:40]!r}")
    is_fisheye = model in FISHEYE_MODELS or values.get("is_fisheye") is True
    names = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", "fisheye_crop_radius")
    found = {name: _number(values.get(name), name, where) for name in names}
    lens_width = _first(found["w"], float(width))
    lens_height = _first(found["h"], float(height))
    if not (lens_width >= 1 and lens_height >= 1):
        raise InputError(f"{where}: expected w and h above 0, got {lens_width:g} and {lens_height:g}")
    focal_x = _first(found["fl_x"], _focal_of_angle(found["camera_angle_x"], lens_width))
    focal_y = _first(found["fl_y"], _focal_of_angle(found["camera_angle_y"], lens_height))
    focal_x, focal_y = _first(focal_x, focal_y), _first(focal_y, focal_x)
    if not (focal_x > 0 and focal_y > 0):
        raise InputError(f"{where}: expected fl_x above 0 or camera_angle_x, got {found['fl_x']:g}")
    crop = found["fisheye_crop_radius"]
    try:
        return Lens(
            width=round(lens_width),
            height=round(lens_height),
            focal_x_px=focal_x,
            focal_y_px=focal_y,
            center_x_px=_first(found["cx"], lens_width / 2),
            center_y_px=_first(found["cy"], lens_height / 2),
            coefficients=_read_distortion(values, where, is_fisheye=is_fisheye),
            is_fisheye=is_fisheye,
            crop_radius_px=crop if is_fisheye and not math.isnan(crop) else math.inf,
        ).to_size(width, height)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _read_distortion(values: Mapping[str, Any], where: str, *, is_fisheye: bool) -> tuple[float, ...]:
    """Coefficients in the order of `Lens`, from k1 ... p2 or the list `distortion_params`."""
    listed = values.get("distortion_params")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != len(DISTORTION):
            raise InputError(f"{where}: expected distortion_params to be {DISTORTION}, got {str(listed)[:60]}")
        values = dict(zip(DISTORTION, listed, strict=True))
    numbers = (_first(_number(values.get(name), name, where), 0.0) for name in DISTORTION)
    k1, k2, k3, k4, p1, p2 = numbers
    if is_fisheye:
        if p1 or p2:
            raise InputError(f"{where}: expected no p1 and p2 with a fisheye, got {p1:g} and {p2:g}")
        return (k1, k2, k3, k4)
    if k4:
        raise InputError(f"{where}: expected no k4 with a perspective camera_model, got {k4:g}")
    return (k1, k2, p1, p2, k3)


def _number(value: Any, name: str, where: str) -> float:
    """The value as a finite number; NaN for None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise InputError(f"{where}: expected {name} to be a finite number, got {str(value)[:40]!r}")
    return float(value)


def _first(value: float, other: float) -> float:
    return other if math.isnan(value) else value


def _focal_of_angle(angle_rad: float, side: float) -> float:
    return 0.5 * side / math.tan(0.5 * angle_rad) if 0 < angle_rad < math.pi else math.nan


def _normal(path: str) -> str:
    """The same path without `./` and double slashes."""
    return str(PurePosixPath(path))


def _split(
    meta: Mapping[str, Any], names: list[str], path: Path, options: ReadOptions
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training and held-out views: as the file says, else every so many-th by name is held out."""
    index_of = {name: index for index, name in enumerate(names)}
    chosen: dict[str, list[int] | None] = {}
    for kind in ("train", "val", "test"):
        files = meta.get(f"{kind}_filenames")
        if not isinstance(files, list | None):
            raise InputError(f"{path}: expected {kind}_filenames to be a list, got {str(files)[:80]!r}")
        unknown = [file for file in files or () if not isinstance(file, str) or _normal(file) not in index_of]
        if unknown:
            raise InputError(f"{path}: {kind}_filenames names no frame: {str(unknown[0])[:80]!r}")
        chosen[kind] = None if files is None else sorted({index_of[_normal(file)] for file in files})
    if all(indices is None for indices in chosen.values()):
        return split_every(len(names), options.hold_out_every)
    named_held_out = {*(chosen["val"] or ()), *(chosen["test"] or ())}
    train = [index for index in range(len(names)) if index not in named_held_out]
    train = train if chosen["train"] is None else chosen["train"]
    if not train:
        raise InputError(f"{path}: expected at least one view in train_filenames, got none")
    return tuple(train), tuple(sorted(named_held_out - set(train)))


def _read_sparse(meta: Mapping[str, Any], path: Path) -> Points:
    """Sparse points in the frame of the cameras: of the named PLY, else of a COLMAP model in the folder, else none."""
    name = meta.get("ply_file_path")
    if name is not None:
        if not isinstance(name, str):
            raise InputError(f"{path}: expected ply_file_path to be a path, got {str(name)[:40]}")
        return read_points(path_inside(path.parent, name, str(path)))
    model = find_model(path.parent / "colmap")
    if model is None:
        return Points(torch.zeros(0, 3), torch.zeros(0, 3))
    where = f"{path}: applied_transform"
    applied = _read_matrix(meta.get("applied_transform", OLD_APPLIED_TRANSFORM), where, "applied_transform")
    scale = _first(_number(meta.get("applied_scale"), "applied_scale", str(path)), 1.0)
    if not (torch.isfinite(applied).all() and scale > 0):
        raise InputError(f"{where}: expected finite numbers and an applied_scale above 0")
    points = read_colmap_points(model)
    positions = (points.positions.double() @ applied[:3, :3].T + applied[:3, 3]) * scale
    return Points(positions.float(), points.colors)
