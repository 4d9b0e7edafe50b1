"""nerfstudio captures: a folder with transforms.json, images, masks and sparse points, read and written.

The fields are those of nerfstudio 1.1 (`nerfstudio/data/dataparsers/nerfstudio_dataparser.py`) and of instant-ngp;
unknown ones are ignored. A Blender scene of NeRF's synthetic data set is three such files, one for each split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from restage.records import InputError, read_json, write_json
from restage.run.layout import TRANSFORMS
from restage.scenes.capture import Capture
from restage.scenes.io import posed
from restage.scenes.io.colmap import find_model, read_colmap_points
from restage.scenes.io.distortion import Lens
from restage.scenes.io.images import PictureHead, write_png
from restage.scenes.io.ply import Points, read_points, write_points
from restage.scenes.io.posed import Focal, Number, Side

__all__ = ["BLENDER", "NERFSTUDIO", "write_capture"]

PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""nerfstudio takes all of them for a perspective camera with whatever of k1 k2 k3 p1 p2 is given."""
FISHEYE_MODELS = ("OPENCV_FISHEYE",)
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""In the order of the field `distortion_params`."""
OLD_APPLIED_TRANSFORM = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0))
"""From COLMAP's world to that of folders from before the field `applied_transform`, as nerfstudio takes it."""

Row = tuple[float, float, float, float]
Rows = Annotated[tuple[Row, ...], msgspec.Meta(min_length=3, max_length=4)]


@dataclass(frozen=True, kw_only=True)
class _LensFields:
    """What is said of a lens, in a frame or at the top of the file."""

    camera_model: str | None = None
    is_fisheye: bool | None = None
    w: Side | None = None
    h: Side | None = None
    fl_x: Focal | None = None
    fl_y: Focal | None = None
    cx: Number | None = None
    cy: Number | None = None
    camera_angle_x: Number | None = None
    camera_angle_y: Number | None = None
    fisheye_crop_radius: Number | None = None
    k1: Number | None = None
    k2: Number | None = None
    k3: Number | None = None
    k4: Number | None = None
    p1: Number | None = None
    p2: Number | None = None
    distortion_params: tuple[Number, Number, Number, Number, Number, Number] | None = None
    """The values of DISTORTION in one list."""


@dataclass(frozen=True, kw_only=True)
class _Frame(_LensFields):
    file_path: str
    transform_matrix: Rows
    mask_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Transforms(_LensFields):
    frames: Annotated[tuple[_Frame, ...], msgspec.Meta(min_length=1, max_length=posed.MAX_FRAMES)]
    train_filenames: tuple[str, ...] | None = None
    val_filenames: tuple[str, ...] | None = None
    test_filenames: tuple[str, ...] | None = None
    ply_file_path: str | None = None
    applied_transform: Rows | None = None
    applied_scale: Focal | None = None
    restage_own_to_world: tuple[tuple[float, ...], ...] | None = None
    """Our own field, which nerfstudio ignores: the similarity that brought a user's capture into this file's frame."""
    restage_notes: tuple[str, ...] = ()
    """Our own field: what there was to say when a user's capture was read."""


def _find_nerfstudio(path: Path) -> Path | None:
    path = path if path.is_file() else path / TRANSFORMS
    is_named_so = path.suffix.lower() == ".json" and path.name != posed.TRAINED_CAMERAS
    return path if is_named_so and path.is_file() else None


def _read_nerfstudio(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read a nerfstudio folder; the world stays as it is."""
    meta = read_json(path, _Transforms)
    notes = list(meta.restage_notes)
    finder = posed.PictureFinder(path.parent, options)
    photos = _read_photos(meta, path, finder)
    finder.report(path, notes, len(meta.frames))
    posed.check_once(photos, path)
    return posed.PosedPhotos(
        photos=photos,
        points=_read_sparse(meta, path, finder),
        split=_split(meta, [photo.name for photo in photos], {_normal(name) for name in finder.missing}, path),
        notes=tuple(notes),
        own_to_world=posed.read_similarity(meta.restage_own_to_world, f"{path}: restage_own_to_world"),
    )


NERFSTUDIO = posed.SceneFormat(_find_nerfstudio, _read_nerfstudio, TRANSFORMS)


def _read_blender(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read a folder with a file for each split: training views, and held-out ones from test, otherwise val."""
    notes: list[str] = []
    photos: list[posed.Photo] = []
    counts: list[int] = []
    held_out = [file for kind in ("test", "val") if (file := path / f"transforms_{kind}.json").is_file()]
    for file in (path / "transforms_train.json", *held_out[:1]):
        meta, finder = read_json(file, _Transforms), posed.PictureFinder(path, options)
        found = _read_photos(meta, file, finder)
        finder.report(file, notes, len(meta.frames))
        photos += found
        counts.append(len(found))
    posed.check_once(photos, path)
    views = tuple(range(len(photos)))
    split = posed.Split(views[: counts[0]], views[counts[0] :]) if held_out else None
    return posed.PosedPhotos(photos=photos, points=posed.no_points(), split=split, notes=tuple(notes))


BLENDER = posed.SceneFormat(
    lambda path: path if (path / "transforms_train.json").is_file() else None,
    _read_blender,
    "transforms_train.json of a Blender scene",
)


def write_capture(capture: Capture, folder: Path) -> None:
    """Write a capture as a nerfstudio folder: PNG images, masks if any, sparse points, `transforms.json` last."""
    stems = [Path(name).stem for name in capture.file_names]
    if len(set(stems)) != len(stems):
        raise InputError(f"{capture.name}: expected file names that differ without their ending")
    paths = [f"images/{stem}.png" for stem in stems]
    mask_paths = [f"masks/{stem}.png" for stem in stems] if capture.masks is not None else []
    for path, image in zip(paths, capture.images, strict=True):
        write_png(folder / path, image.permute(1, 2, 0))
    for path, mask in zip(mask_paths, capture.masks if capture.masks is not None else (), strict=True):
        write_png(folder / path, mask)
    if len(capture.points):
        write_points(capture.points, folder / "sparse_pc.ply", colors=capture.point_colors)
    poses = (capture.cameras.camera_to_world * posed.OPENGL_AXES).tolist()
    frames: list[dict[str, Any]] = []
    for path, pose, intrinsics in zip(paths, poses, capture.cameras.intrinsics.tolist(), strict=True):
        (fl_x, _, cx), (_, fl_y, cy), _ = intrinsics
        frames.append({"file_path": path, "transform_matrix": pose, "fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy})
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
        **({} if capture.own_to_world is None else {"restage_own_to_world": capture.own_to_world.tolist()}),
        **({"restage_notes": list(capture.notes)} if capture.notes else {}),
    }
    write_json(folder / TRANSFORMS, meta)


def _read_photos(meta: _Transforms, path: Path, finder: posed.PictureFinder) -> list[posed.Photo]:
    """All frames whose picture exists, sorted by path."""
    found = (_read_photo(frame, meta, f"{path}: frames[{index}]", finder) for index, frame in enumerate(meta.frames))
    return sorted((photo for photo in found if photo is not None), key=lambda photo: photo.name)


def _read_photo(frame: _Frame, meta: _Transforms, where: str, finder: posed.PictureFinder) -> posed.Photo | None:
    picture = finder.find(frame.file_path)
    if picture is None:
        return None
    own = {field.name: getattr(frame, field.name) for field in fields(_LensFields)}
    said = {name: getattr(meta, name) if value is None else value for name, value in own.items()}
    return posed.open_photo(
        name=_normal(frame.file_path),
        path=picture,
        lens=lambda head: _read_lens(_LensFields(**said), head),
        camera_to_world=_whole(frame.transform_matrix) * posed.OPENGL_AXES,
        where=where,
        mask_path=finder.find_other(frame.mask_path, where) if frame.mask_path and finder.needs_pictures else None,
        needs_picture=finder.needs_pictures,
    )


def _whole(rows: tuple[Row, ...]) -> Tensor:
    """The 4x4 matrix of its first three or all four rows, float64."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.tensor(rows[:3], dtype=torch.float64)
    return matrix


def _read_lens(said: _LensFields, head: PictureHead) -> Lens:
    model = "OPENCV" if said.camera_model is None else said.camera_model
    if model not in (*PINHOLE_MODELS, *FISHEYE_MODELS):
        known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
        raise InputError(f"expected camera_model to be one of {known}, got {model[:40]!r}")
    is_fisheye = model in FISHEYE_MODELS or bool(said.is_fisheye)
    width, height = float(head.width), float(head.height)
    # Without a size, the principal point tells whether the numbers are for the picture as stored or as turned by EXIF.
    if head.orientation >= 5 and said.cx is not None and said.cy is not None:
        if abs(2 * said.cx - height) + abs(2 * said.cy - width) < 0.1 * (width + height):
            width, height = height, width
    width, height = said.w or width, said.h or height
    focal_x = said.fl_x or _focal_of_angle(said.camera_angle_x, width)
    focal_y = said.fl_y or _focal_of_angle(said.camera_angle_y, height)
    if focal_x is None and focal_y is None:
        raise InputError("expected fl_x above 0 or a camera_angle_x between 0 and pi, got neither")
    crop = said.fisheye_crop_radius
    k1, k2, k3, k4, p1, p2 = said.distortion_params or (getattr(said, name) or 0.0 for name in DISTORTION)
    if is_fisheye and (p1 or p2):
        raise InputError(f"expected no p1 and p2 with a fisheye, got {p1:g} and {p2:g}")
    if k4 and not is_fisheye:
        raise InputError(f"expected no k4 with a perspective camera_model, got {k4:g}")
    return Lens(
        width=round(width),
        height=round(height),
        focal_x_px=focal_x or focal_y or 0.0,
        focal_y_px=focal_y or focal_x or 0.0,
        center_x_px=width / 2 if said.cx is None else said.cx,
        center_y_px=height / 2 if said.cy is None else said.cy,
        coefficients=(k1, k2, k3, k4) if is_fisheye else (k1, k2, p1, p2, k3),
        model="fisheye" if is_fisheye else "brown",
        crop_radius_px=crop if is_fisheye and crop is not None else math.inf,
    )


def _focal_of_angle(angle_rad: float | None, side: float) -> float | None:
    return 0.5 * side / math.tan(0.5 * angle_rad) if angle_rad is not None and 0 < angle_rad < math.pi else None


def _normal(path: str) -> str:
    """The same path with forward slashes, without `./` and double slashes."""
    return str(PurePosixPath(path.replace("\\", "/")))


def _split(meta: _Transforms, names: list[str], missing: set[str], path: Path) -> posed.Split | None:
    """Training and held-out views that the file names; None if it names none."""
    index_of = {name: index for index, name in enumerate(names)}
    lists = {kind: getattr(meta, f"{kind}_filenames") for kind in ("train", "val", "test")}
    if all(files is None for files in lists.values()):
        return None
    chosen: dict[str, set[int]] = {}
    for kind, files in lists.items():
        known = [_normal(file) for file in files or ()]
        unknown = [file for file in known if file not in index_of and file not in missing]
        if unknown:
            raise InputError(f"{path}: {kind}_filenames names no frame: {unknown[0][:80]!r}")
        chosen[kind] = {index_of[file] for file in known if file in index_of}
    held_out = chosen["val"] | chosen["test"]
    train = set(range(len(names))) - held_out if meta.train_filenames is None else chosen["train"]
    if not train:
        raise InputError(f"{path}: expected at least one view in train_filenames, got none")
    return posed.Split(tuple(sorted(train)), tuple(sorted(held_out - train)))


def _read_sparse(meta: _Transforms, path: Path, finder: posed.PictureFinder) -> Points:
    """Read sparse points in the frame of the cameras from the named PLY, or from a COLMAP model in the folder."""
    if meta.ply_file_path is not None and finder.needs_pictures:
        return read_points(finder.find_other(meta.ply_file_path, str(path)))
    model = find_model(path.parent / "colmap")
    if model is None:
        return posed.no_points()
    applied = _whole(meta.applied_transform or OLD_APPLIED_TRANSFORM)
    if not torch.isfinite(applied).all():
        raise InputError(f"{path}: applied_transform: expected finite numbers, got {meta.applied_transform}")
    points, scale = read_colmap_points(model), meta.applied_scale or 1.0
    return Points((points.positions @ applied[:3, :3].T + applied[:3, 3]) * scale, points.colors)
