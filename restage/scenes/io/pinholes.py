"""Captures with one plain pinhole a picture: of LLFF, Record3D, Polycam, and of models of 3D Gaussian splatting.

The two apps scan with a phone, which knows where it was; both give OpenGL cameras in ARKit's world with y up. Fields
and folders are those that nerfstudio's `ns-process-data` reads (`nerfstudio/process_data/{record3d,polycam}_utils.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restage.records import InputError, read_json
from restage.scenes.io import posed
from restage.scenes.io.distortion import Lens
from restage.scenes.io.images import list_images
from restage.scenes.io.posed import Focal, Number, Side

__all__ = ["GAUSSIAN_SPLATTING", "LLFF", "POLYCAM", "RECORD3D"]

LLFF_FOLDERS = ("images", *posed.SMALLER_COPIES, "")
LLFF_COLUMNS = 17
"""A row an image: a 3x5 matrix and two depth bounds. The matrix has the camera's down, right and back, its position,
and height, width and focal length in pixels
(https://github.com/Fyusion/LLFF#using-your-own-poses-without-running-colmap)."""
KEYFRAMES = (("corrected_images", "corrected_cameras"), ("images", "cameras"))
"""Polycam's folders of pictures and cameras; it writes corrected ones once it has optimized a scan."""


def _read_llff(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read poses and the images they are for, which go together in the order of the names."""
    table = _read_table(path)
    folders = [path.parent / place for place in LLFF_FOLDERS]
    images = next((found for folder in folders if (found := list_images(folder))), [])
    if len(images) != len(table):
        raise InputError(f"{path}: expected an image a pose, got {len(images)} images for {len(table)} poses")
    photos = []
    for image, row in zip(images, table, strict=True):
        matrix = torch.from_numpy(row[:15].reshape(3, 5).copy())
        height, width, focal_px = matrix[:, 4].tolist()
        down, right, back = matrix[:, 0], matrix[:, 1], matrix[:, 2]
        rows = torch.stack([right, -down, back, matrix[:, 3]], dim=1)
        lens = (width, height, focal_px, focal_px, width / 2, height / 2)
        photos.append(_open(image, lens, rows, f"{path}, {image.name}"))
    return _posed(photos, path, [])


LLFF = posed.SceneFormat(
    lambda path: path / "poses_bounds.npy" if (path / "poses_bounds.npy").is_file() else None,
    _read_llff,
    "poses_bounds.npy (LLFF)",
)


def _read_table(path: Path) -> np.ndarray:
    try:
        # As a map of the file, so that numpy compares the header's shape with the file's length and allocates nothing.
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - numpy raises whatever a broken header brings about
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable as a numpy array: {reason[:200]}") from None
    is_table = isinstance(table, np.ndarray) and table.ndim == 2 and table.shape[1] == LLFF_COLUMNS
    if not is_table or table.dtype.kind not in "fiu" or not 0 < len(table) <= posed.MAX_FRAMES:
        shape = getattr(table, "shape", "no array")
        raise InputError(f"{path}: expected numbers of shape (n, {LLFF_COLUMNS}), got {shape}")
    return table.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class _Record3D:
    w: Side
    h: Side
    K: tuple[Number, Number, Number, Number, Number, Number, Number, Number, Number]
    """The 3x3 intrinsics by columns."""
    poses: tuple[tuple[Number, Number, Number, Number, Number, Number, Number], ...]
    """Quaternions xyzw and positions."""
    perFrameIntrinsicCoeffs: tuple[tuple[Number, Number, Number, Number], ...] | None = None


def _find_record3d(path: Path) -> Path | None:
    has_pictures = (path / "rgb").is_dir() or (path / "rgbd").is_dir()
    names = ("metadata.json", "metadata")
    return next((path / name for name in names if has_pictures and (path / name).is_file()), None)


def _read_record3d(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read `metadata` and the pictures `rgb/0.jpg`, ..."""
    meta = read_json(path, _Record3D)
    folder = path.parent / ("rgb" if (path.parent / "rgb").is_dir() else "rgbd")
    pictures = sorted((p for p in list_images(folder) if p.stem.isdecimal()), key=lambda p: int(p.stem))
    shared = [(meta.K[0], meta.K[4], meta.K[6], meta.K[7])] * len(meta.poses)
    intrinsics = shared if meta.perFrameIntrinsicCoeffs is None else meta.perFrameIntrinsicCoeffs
    count = min(len(meta.poses), len(intrinsics))
    photos = []
    for picture in pictures:
        index, where = int(picture.stem), f"{path}, {picture.name}"
        if index >= count:
            raise InputError(f"{where}: expected a pose a picture, got {count} poses for {len(pictures)} pictures")
        x, y, z, w, *position = meta.poses[index]
        rotation = posed.rotation_of((w, x, y, z), where)
        rows = torch.cat([rotation, torch.tensor(position, dtype=torch.float64)[:, None]], dim=1)
        photos.append(_open(picture, (meta.w, meta.h, *intrinsics[index]), rows, where))
    return _posed(photos, path, [])


RECORD3D = posed.SceneFormat(_find_record3d, _read_record3d, "metadata and rgb/ of Record3D")

POSE_FIELDS = tuple(f"t_{row}{column}" for row in range(3) for column in range(4))
_Polycam: Any = make_dataclass(
    "_Polycam",
    [("width", Side), ("height", Side)] + [(name, Number) for name in ("fx", "fy", "cx", "cy", *POSE_FIELDS)],
)


def _find_polycam(path: Path) -> Path | None:
    for folder in (path, path / "keyframes"):
        if any((folder / images).is_dir() and (folder / cameras).is_dir() for images, cameras in KEYFRAMES):
            return folder
    return None


def _read_polycam(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read `keyframes/images/<name>.jpg` with `keyframes/cameras/<name>.json`."""
    notes: list[str] = []
    images, cameras = next((path / i, path / c) for i, c in KEYFRAMES if (path / i).is_dir() and (path / c).is_dir())
    photos, lost = [], []
    for picture in list_images(images):
        file = cameras / f"{picture.stem}.json"
        if not file.is_file():
            lost.append(picture.name)
            continue
        camera = read_json(file, _Polycam)
        rows = torch.tensor([getattr(camera, name) for name in POSE_FIELDS], dtype=torch.float64).view(3, 4)
        lens = (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        photos.append(_open(picture, lens, rows, str(file)))
    if lost:
        posed.note(
            notes,
            f"{path}: {len(lost)} of {len(lost) + len(photos)} pictures have no camera and are left out: {lost[0]}",
        )
    return _posed(photos, path, notes)


POLYCAM = posed.SceneFormat(_find_polycam, _read_polycam, "keyframes/ of Polycam's raw data")


@dataclass(frozen=True, kw_only=True)
class _TrainedCamera:
    id: int
    img_name: str
    width: Side
    height: Side
    position: tuple[Number, Number, Number]
    rotation: tuple[tuple[Number, Number, Number], tuple[Number, Number, Number], tuple[Number, Number, Number]]
    """Rows of camera-to-world, OpenCV axes."""
    fx: Focal
    fy: Focal


def _find_trained(path: Path) -> Path | None:
    """Other programs name files so, too: in a folder, what else 3D Gaussian splatting writes must be there."""
    if path.name == posed.TRAINED_CAMERAS and path.is_file():
        return path
    is_model = any((path / name).exists() for name in ("cfg_args", "point_cloud", "input.ply"))
    return path / posed.TRAINED_CAMERAS if is_model and (path / posed.TRAINED_CAMERAS).is_file() else None


def _read_trained(path: Path, name: str, options: posed.ReadOptions) -> posed.PosedPhotos:
    """Read `cameras.json` of a trained model; its pictures are looked for in its folder and in `images`."""
    cameras = read_json(path, tuple[_TrainedCamera, ...])
    if len(cameras) > posed.MAX_FRAMES:
        raise InputError(f"{path}: expected at most {posed.MAX_FRAMES} cameras, got {len(cameras)}")
    finder, notes, photos = posed.PictureFinder(path.parent, options), list[str](), list[posed.Photo]()
    for number, camera in enumerate(cameras):
        named = camera.img_name
        picture = finder.find(f"images/{named}" if "/" not in named.replace("\\", "/") else named)
        if picture is None:
            continue
        position = torch.tensor(camera.position, dtype=torch.float64)[:, None]
        rows = torch.cat([torch.tensor(camera.rotation, dtype=torch.float64), position], dim=1)
        lens = (camera.width, camera.height, camera.fx, camera.fy, camera.width / 2, camera.height / 2)
        how = {"needs_picture": finder.needs_pictures, "name": named}
        photos.append(_open(picture, lens, rows * posed.OPENGL_AXES, f"{path}: [{number}]", **how))
    finder.report(path, notes, len(cameras))
    return _posed(photos, path, notes)


GAUSSIAN_SPLATTING = posed.SceneFormat(
    _find_trained, _read_trained, "cameras.json of a model of 3D Gaussian splatting, with images/"
)


def _open(
    path: Path, lens: tuple[float, ...], rows: Tensor, where: str, *, name: str = "", needs_picture: bool = True
) -> posed.Photo:
    """Read a picture's header; `lens` is width, height, focal length x and y, center x and y, in pixels.

    `rows` is the 3x4 pose with OpenGL axes, float64.
    """
    width, height, focal_x_px, focal_y_px, center_x_px, center_y_px = lens
    if not (1 <= width < 1e6 and 1 <= height < 1e6):
        raise InputError(f"{where}: expected a size in pixels, got {width:g}x{height:g}")
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3] = rows

    def make(head: object) -> Lens:
        return Lens(
            width=round(width),
            height=round(height),
            focal_x_px=focal_x_px,
            focal_y_px=focal_y_px,
            center_x_px=center_x_px,
            center_y_px=center_y_px,
        )

    pose = camera_to_world * posed.OPENGL_AXES
    return posed.open_photo(
        name=name or path.name, path=path, lens=make, camera_to_world=pose, where=where, needs_picture=needs_picture
    )


def _posed(photos: list[posed.Photo], path: Path, notes: list[str]) -> posed.PosedPhotos:
    if not photos:
        raise InputError(f"{path}: expected pictures with cameras, got none")
    posed.check_once(photos, path)
    photos = sorted(photos, key=lambda photo: photo.name)
    return posed.PosedPhotos(photos=photos, points=posed.no_points(), notes=tuple(notes))
