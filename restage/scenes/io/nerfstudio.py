"""nerfstudio captures: a folder with transforms.json, images, masks and sparse points, read and written.

The fields are those of nerfstudio 1.1 (`nerfstudio/data/dataparsers/nerfstudio_dataparser.py`) and of instant-ngp;
unknown ones are ignored. A Blender scene of NeRF's synthetic data set is three such files, one for each split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.records import InputError, read_json, write_atomically, write_json
from restage.run.layout import TRANSFORMS
from restage.scenes.capture import Capture
from restage.scenes.io import posed
from restage.scenes.io.colmap import find_model, read_colmap_points
from restage.scenes.io.distortion import Lens
from restage.scenes.io.images import PictureHead
from restage.scenes.io.ply import Points, read_points, write_points

__all__ = ["BLENDER", "NERFSTUDIO", "write_capture"]

PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""nerfstudio takes all of them for a perspective camera with whatever of k1 k2 k3 p1 p2 is given."""
FISHEYE_MODELS = ("OPENCV_FISHEYE",)
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""In the order of the field `distortion_params`."""
OLD_APPLIED_TRANSFORM = ((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, -1, 0))
"""From COLMAP's world to that of folders from before the field `applied_transform`, as nerfstudio takes it."""

OWN_TO_WORLD = "restage_own_to_world"
"""Our own field, which nerfstudio ignores: the similarity that brought a user's capture into this file's frame."""
NOTES = "restage_notes"
"""Our own field: what there was to say when a user's capture was read."""


def _find_nerfstudio(path: Path) -> Path | None:
    path = path if path.is_file() else path / TRANSFORMS
    return path if path.suffix.lower() == ".json" and path.is_file() else None


def _read_nerfstudio(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read a nerfstudio folder; the world stays as it is.

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file and the frame.
    """
    meta, notes = _read_meta(path), _read_notes(path)
    finder = posed.PictureFinder(path.parent, follow_paths=options.follow_paths)
    photos = _read_photos(meta, path, finder)
    finder.report(path, notes, len(meta["frames"]))
    posed.check_once(photos, path)
    return posed.PosedPhotos(
        photos=photos,
        points=_read_sparse(meta, path, finder),
        split=_split(meta, [photo.name for photo in photos], {_normal(name) for name in finder.missing}, path),
        notes=tuple(notes),
        own_to_world=_read_own_to_world(meta, path),
    )


NERFSTUDIO = posed.SceneFormat(_find_nerfstudio, _read_nerfstudio, TRANSFORMS)


def _find_blender(path: Path) -> Path | None:
    return path if (path / "transforms_train.json").is_file() else None


def _read_blender(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read a folder with a file for each split: training views, and held-out ones from test, otherwise val."""
    notes: list[str] = []
    photos: list[posed.Photo] = []
    counts = []
    held_out = [file for kind in ("test", "val") if (file := path / f"transforms_{kind}.json").is_file()]
    for file in (path / "transforms_train.json", *held_out[:1]):
        meta, finder = _read_meta(file), posed.PictureFinder(path, follow_paths=options.follow_paths)
        found = _read_photos(meta, file, finder)
        finder.report(file, notes, len(meta["frames"]))
        photos += found
        counts.append(len(found))
    posed.check_once(photos, path)
    views = tuple(range(len(photos)))
    split = posed.Split(views[: counts[0]], views[counts[0] :]) if held_out else None
    return posed.PosedPhotos(photos=photos, points=posed.no_points(), split=split, notes=tuple(notes))


BLENDER = posed.SceneFormat(_find_blender, _read_blender, "transforms_train.json of a Blender scene")


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
    poses = (capture.cameras.camera_to_world * posed.OPENGL_AXES).tolist()
    frames: list[dict[str, Any]] = [
        {"file_path": path, "transform_matrix": pose, **_intrinsics_entries(intrinsics)}
        for path, pose, intrinsics in zip(paths, poses, capture.cameras.intrinsics, strict=True)
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
        **({NOTES: list(capture.notes)} if capture.notes else {}),
    }
    write_json(folder / TRANSFORMS, meta)


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
    if len(frames) > posed.MAX_FRAMES:
        raise InputError(f"{path}: expected at most {posed.MAX_FRAMES} frames, got {len(frames)}")
    return meta


def _read_photos(meta: Mapping[str, Any], path: Path, finder: posed.PictureFinder) -> list[posed.Photo]:
    """All frames whose picture exists, sorted by path."""
    found = (_read_photo(frame, meta, path, index, finder) for index, frame in enumerate(meta["frames"]))
    return sorted((photo for photo in found if photo is not None), key=lambda photo: photo.name)


def _read_photo(
    frame: Any, meta: Mapping[str, Any], path: Path, index: int, finder: posed.PictureFinder
) -> posed.Photo | None:
    where = f"{path}, frame {index}"
    if not isinstance(frame, Mapping) or not isinstance(frame.get("file_path"), str):
        raise InputError(f"{where}: expected an object with a file_path, got {str(frame)[:40]}")
    mask = frame.get("mask_path")
    if not isinstance(mask, str | None):
        raise InputError(f"{where}: expected mask_path to be a path, got {str(mask)[:40]}")
    picture = finder.find(frame["file_path"])
    if picture is None:
        return None
    return posed.open_photo(
        name=_normal(frame["file_path"]),
        path=picture,
        lens=lambda head: _read_lens({**meta, **frame}, head, where),
        camera_to_world=_read_matrix(frame.get("transform_matrix"), where) * posed.OPENGL_AXES,
        where=where,
        mask_path=None if mask is None else finder.find_other(mask, where),
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
    """What `write_capture` has left of a change of the world; earlier versions left a 3x3 rotation."""
    rows = meta.get(OWN_TO_WORLD)
    if rows is None:
        return None
    if isinstance(rows, list) and len(rows) == 3 and all(isinstance(row, list) and len(row) == 3 for row in rows):
        rows = [[*row, 0.0] for row in rows]
    where = f"{path}: {OWN_TO_WORLD}"
    matrix = _read_matrix(rows, where, OWN_TO_WORLD)
    scale = float(matrix[0, :3].norm())
    if not (torch.isfinite(matrix).all() and scale > 0):
        raise InputError(f"{where}: expected a finite similarity, got {str(rows)[:60]}")
    unscaled = matrix.clone()
    unscaled[:3, :3] /= scale
    matrix[:3, :3] = scale * posed.check_rigid(unscaled, where)[:3, :3]
    return matrix


def _read_notes(path: Path) -> list[str]:
    found = read_json(path).get(NOTES, [])
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _read_lens(values: Mapping[str, Any], head: PictureHead, where: str) -> Lens:
    """Return the lens that a frame's values tell, with those of the top level behind them."""
    model = values.get("camera_model", "OPENCV")
    if model not in (*PINHOLE_MODELS, *FISHEYE_MODELS):
        known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
        raise InputError(f"{where}: expected camera_model to be one of {known}, got {str(model)[:40]!r}")
    is_fisheye = model in FISHEYE_MODELS or values.get("is_fisheye") is True
    names = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", "fisheye_crop_radius")
    found = {name: _number(values.get(name), name, where) for name in names}
    # Without a size, the principal point tells whether the numbers are for the picture as stored or as turned by EXIF.
    width, height = head[:2]
    if head.orientation >= 5 and abs(2 * found["cx"] - height) + abs(2 * found["cy"] - width) < 0.1 * (width + height):
        width, height = height, width
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
    return Lens(
        width=round(lens_width),
        height=round(lens_height),
        focal_x_px=focal_x,
        focal_y_px=focal_y,
        center_x_px=_first(found["cx"], lens_width / 2),
        center_y_px=_first(found["cy"], lens_height / 2),
        coefficients=_read_distortion(values, where, is_fisheye=is_fisheye),
        model="fisheye" if is_fisheye else "brown",
        crop_radius_px=crop if is_fisheye and not math.isnan(crop) else math.inf,
    )


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
    """The same path with forward slashes, without `./` and double slashes."""
    return str(PurePosixPath(path.replace("\\", "/")))


def _split(meta: Mapping[str, Any], names: list[str], missing: set[str], path: Path) -> posed.Split | None:
    """Training and held-out views that the file names; None if it names none."""
    index_of = {name: index for index, name in enumerate(names)}
    chosen: dict[str, list[int] | None] = {}
    for kind in ("train", "val", "test"):
        files = meta.get(f"{kind}_filenames")
        if not isinstance(files, list | None):
            raise InputError(f"{path}: expected {kind}_filenames to be a list, got {str(files)[:80]!r}")
        known = [_normal(file) for file in files or () if isinstance(file, str)]
        unknown = [file for file in known if file not in index_of and file not in missing]
        if unknown or len(known) != len(files or ()):
            raise InputError(f"{path}: {kind}_filenames names no frame: {str([*unknown, *(files or ())][0])[:80]!r}")
        chosen[kind] = None if files is None else sorted({index_of[file] for file in known if file in index_of})
    if all(indices is None for indices in chosen.values()):
        return None
    named_held_out = {*(chosen["val"] or ()), *(chosen["test"] or ())}
    train = [index for index in range(len(names)) if index not in named_held_out]
    train = train if chosen["train"] is None else chosen["train"]
    if not train:
        raise InputError(f"{path}: expected at least one view in train_filenames, got none")
    return posed.Split(tuple(train), tuple(sorted(named_held_out - set(train))))


def _read_sparse(meta: Mapping[str, Any], path: Path, finder: posed.PictureFinder) -> Points:
    """Read sparse points in the frame of the cameras from the named PLY, or from a COLMAP model in the folder."""
    name = meta.get("ply_file_path")
    if name is not None:
        if not isinstance(name, str):
            raise InputError(f"{path}: expected ply_file_path to be a path, got {str(name)[:40]}")
        return read_points(finder.find_other(name, str(path)))
    model = find_model(path.parent / "colmap")
    if model is None:
        return posed.no_points()
    where = f"{path}: applied_transform"
    applied = _read_matrix(meta.get("applied_transform", OLD_APPLIED_TRANSFORM), where, "applied_transform")
    scale = _first(_number(meta.get("applied_scale"), "applied_scale", str(path)), 1.0)
    if not (torch.isfinite(applied).all() and scale > 0):
        raise InputError(f"{where}: expected finite numbers and an applied_scale above 0")
    points = read_colmap_points(model)
    return Points((points.positions @ applied[:3, :3].T + applied[:3, 3]) * scale, points.colors)
