"""Exports of two apps that scan with a phone, which knows where it was: Record3D and Polycam.

Both give OpenGL cameras in ARKit's world with y up, which `turn_upright` makes upright. Fields and folders are those
that nerfstudio's `ns-process-data` reads (`nerfstudio/process_data/{record3d,polycam}_utils.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from restage.records import InputError, read_json
from restage.scenes.io import posed
from restage.scenes.io.images import list_images
from restage.scenes.splats import rotation_matrices

__all__ = ["POLYCAM", "RECORD3D"]

KEYFRAMES = (("corrected_images", "corrected_cameras"), ("images", "cameras"))
"""Polycam's folders of pictures and cameras; it writes corrected ones once it has optimized a scan."""


def _find_record3d(path: Path) -> Path | None:
    has_pictures = (path / "rgb").is_dir() or (path / "rgbd").is_dir()
    return next(
        (path / name for name in ("metadata.json", "metadata") if has_pictures and (path / name).is_file()), None
    )


def _read_record3d(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read `metadata` (K by columns, poses as quaternion xyzw and position) and the pictures `rgb/0.jpg`, ...

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file.
    """
    meta = _object(read_json(path), path)
    folder = path.parent / ("rgb" if (path.parent / "rgb").is_dir() else "rgbd")
    pictures = sorted((p for p in list_images(folder) if p.stem.isdecimal()), key=lambda p: int(p.stem))
    poses, rows = _table(meta, "poses", 7, path), [_numbers(meta.get("K"), 9, f"{path}: K")] * len(pictures)
    if len(pictures) > len(poses):
        raise InputError(f"{path}: expected a pose a picture, got {len(poses)} poses for {len(pictures)} pictures")
    if "perFrameIntrinsicCoeffs" in meta:
        each = _table(meta, "perFrameIntrinsicCoeffs", 4, path)
        rows = [[row[0], 0, 0, 0, row[1], 0, row[2], row[3], 1] for row in each]
    width, height = _numbers([meta.get("w"), meta.get("h")], 2, f"{path}: w and h")
    photos = []
    for picture in pictures:
        index = int(picture.stem)
        if index >= min(len(poses), len(rows)):
            raise InputError(f"{path}: expected a pose for {picture.name}, got {len(poses)} poses")
        pose, intrinsics = poses[index], rows[index]
        x, y, z, w = pose[:4]
        camera_to_world = torch.eye(4, dtype=torch.float64)
        camera_to_world[:3, :3] = rotation_matrices(torch.tensor([[w, x, y, z]], dtype=torch.float64))[0]
        camera_to_world[:3, 3] = torch.tensor(pose[4:], dtype=torch.float64)
        lens = (width, height, intrinsics[0], intrinsics[4], intrinsics[6], intrinsics[7])
        photos.append(posed.open_pinhole(picture, lens, camera_to_world, f"{path}, {picture.name}"))
    return _posed(photos, path, [])


RECORD3D = posed.SceneFormat(_find_record3d, _read_record3d, "metadata and rgb/ of Record3D")


def _find_polycam(path: Path) -> Path | None:
    for folder in (path, path / "keyframes"):
        if any((folder / images).is_dir() and (folder / cameras).is_dir() for images, cameras in KEYFRAMES):
            return folder
    return None


def _read_polycam(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read `keyframes/images/<name>.jpg` with `keyframes/cameras/<name>.json`: t_00 to t_23, lens and size.

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file.
    """
    notes: list[str] = []
    images, cameras = next((path / i, path / c) for i, c in KEYFRAMES if (path / i).is_dir() and (path / c).is_dir())
    photos, lost = [], []
    for picture in list_images(images):
        file = cameras / f"{picture.stem}.json"
        if not file.is_file():
            lost.append(picture.name)
            continue
        meta = _object(read_json(file), file)
        numbers = [meta.get(f"t_{row}{column}") for row in range(3) for column in range(4)]
        camera_to_world = torch.eye(4, dtype=torch.float64)
        camera_to_world[:3] = torch.tensor(_numbers(numbers, 12, f"{file}: t_00 to t_23"), dtype=torch.float64).view(
            3, 4
        )
        names = ("width", "height", "fx", "fy", "cx", "cy")
        lens = _numbers([meta.get(name) for name in names], 6, f"{file}: {', '.join(names)}")
        photos.append(posed.open_pinhole(picture, lens, camera_to_world, str(file)))
    if lost:
        posed.note(
            notes,
            f"{path}: {len(lost)} of {len(lost) + len(photos)} pictures have no camera and are left out: {lost[0]}",
        )
    return _posed(photos, path, notes)


POLYCAM = posed.SceneFormat(_find_polycam, _read_polycam, "keyframes/ of Polycam's raw data")


def _posed(photos: list[posed.Photo], path: Path, notes: list[str]) -> posed.PosedPhotos:
    if not photos:
        raise InputError(f"{path}: expected pictures with cameras, got none")
    posed.check_once(photos, path)
    return posed.PosedPhotos(
        photos=sorted(photos, key=lambda photo: photo.name), points=posed.no_points(), notes=tuple(notes)
    )


def _object(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: expected a JSON object, got {str(value)[:40]}")
    return value


def _table(meta: Mapping[str, Any], field: str, columns: int, path: Path) -> list[list[float]]:
    rows = meta.get(field)
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list {field}, got {str(rows)[:40]}")
    return [_numbers(row, columns, f"{path}: {field}, row {index}") for index, row in enumerate(rows)]


def _numbers(values: Any, count: int, where: str) -> list[float]:
    """Check a list of `count` finite numbers.

    Raises:
        InputError: it is something else; `where` opens the message.
    """
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise InputError(f"{where}: expected {count} numbers, got {str(values)[:60]}")
    if not all(-1e300 < value < 1e300 and math.isfinite(value) for value in values):
        raise InputError(f"{where}: expected finite numbers, got {str(values)[:60]}")
    return [float(value) for value in values]
