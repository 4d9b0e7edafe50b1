"""nerfstudio captures: a folder with transforms.json, images and sparse points, read into a `Capture` and written.

The only place where OpenGL camera axes (x right, y up, z back) meet our OpenCV ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from restage.records import InputError, read_json, write_atomically, write_json
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io.ply import Points, read_points, write_points

__all__ = ["read_capture", "write_capture"]

HOLD_OUT_EVERY = 8
"""Without a split in the file, every 8th view by name is held out, as in the 3D Gaussian splatting benchmarks."""
MIN_SIDE = 8
MAX_FRAMES = 20_000
MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
AXES = torch.tensor([1.0, -1.0, -1.0, 1.0])
"""Column factors between OpenGL and OpenCV cameras, both ways."""


@dataclass(frozen=True)
class _Frame:
    """One frame of the file, checked."""

    file_path: str
    image_path: Path
    camera_to_world: Tensor
    lens: dict[str, float]
    """fl_x, fl_y, cx, cy in pixels of w x h, and distortion k1 k2 k3 k4 p1 p2; NaN where the file is silent."""


def read_capture(folder: Path, size: int | None = None) -> Capture:
    """Read a nerfstudio folder; the world stays as it is, lens distortion is taken out of the images.

    Args:
        folder: Holds `transforms.json`; all paths in it must stay inside.
        size: Longer side of the images in pixels; they are only ever made smaller. Default: as they are.

    Raises:
        InputError: anything that is missing, broken or absurd, naming the file and the frame.
    """
    meta, frames = _read_frames(folder)
    with ThreadPoolExecutor(max_workers=4) as pool:
        views = list(pool.map(lambda frame: _read_view(frame, size), frames))
    sizes = {tuple(image.shape[1:]) for image, _ in views}
    if len(sizes) > 1:
        raise InputError(f"{folder}: expected images of one size, got {sorted(sizes)}; give a size or crop them alike")
    (height, width) = sizes.pop()
    train, held_out = _split(meta, [frame.file_path for frame in frames], folder)
    points = _read_sparse(meta, folder)
    return Capture(
        name=folder.resolve().name if folder.resolve().name != "capture" else folder.resolve().parent.name,
        cameras=Cameras(
            torch.stack([frame.camera_to_world for frame in frames]),
            torch.stack([intrinsics for _, intrinsics in views]),
            width,
            height,
        ),
        images=torch.stack([image for image, _ in views]),
        file_names=_file_names([frame.file_path for frame in frames]),
        points=points.positions,
        point_colors=points.colors,
        train_indices=train,
        held_out_indices=held_out,
    )


def write_capture(capture: Capture, folder: Path) -> None:
    """Write a capture as a nerfstudio folder: PNG images, sparse points, and `transforms.json` last."""
    paths = [f"images/{Path(name).stem}.png" for name in capture.file_names]
    if len(set(paths)) != len(paths):
        raise InputError(f"{capture.name}: expected file names that differ without their ending")
    for path, image in zip(paths, capture.images, strict=True):
        pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        with write_atomically(folder / path) as temporary:
            Image.fromarray(pixels).save(temporary)
    if len(capture.points):
        write_points(capture.points, folder / "sparse_pc.ply", colors=capture.point_colors)
    frames = [
        {"file_path": path, "transform_matrix": (camera_to_world * AXES).tolist(), **_intrinsics_entries(intrinsics)}
        for path, camera_to_world, intrinsics in zip(
            paths, capture.cameras.camera_to_world, capture.cameras.intrinsics, strict=True
        )
    ]
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
    }
    write_json(folder / "transforms.json", meta)


def _intrinsics_entries(intrinsics: Float[Tensor, "3 3"]) -> dict[str, float]:
    return {
        "fl_x": float(intrinsics[0, 0]),
        "fl_y": float(intrinsics[1, 1]),
        "cx": float(intrinsics[0, 2]),
        "cy": float(intrinsics[1, 2]),
    }


def _read_frames(folder: Path) -> tuple[Mapping[str, Any], list[_Frame]]:
    """The file's top level and its frames, sorted by path."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds transforms.json")
    path = folder / "transforms.json"
    meta = read_json(path)
    frames = meta.get("frames") if isinstance(meta, Mapping) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: expected a list 'frames' with at least one frame, got {str(frames)[:40]}")
    if len(frames) > MAX_FRAMES:
        raise InputError(f"{path}: expected at most {MAX_FRAMES} frames, got {len(frames)}")
    model = meta.get("camera_model", "OPENCV")
    if model not in MODELS:
        raise InputError(f"{path}: expected camera_model to be one of {', '.join(MODELS)}, got {str(model)[:40]!r}")
    checked = [_check_frame(frame, meta, folder, index) for index, frame in enumerate(frames)]
    checked.sort(key=lambda frame: frame.file_path)
    for first, second in zip(checked, checked[1:], strict=False):
        if first.file_path == second.file_path:
            raise InputError(f"{path}: expected each image once, got {first.file_path} twice")
    return meta, checked


def _check_frame(frame: Any, meta: Mapping[str, Any], folder: Path, index: int) -> _Frame:
    where = f"{folder / 'transforms.json'}, frame {index}"
    if not isinstance(frame, Mapping) or not isinstance(frame.get("file_path"), str):
        raise InputError(f"{where}: expected an object with a file_path, got {str(frame)[:40]}")
    try:
        matrix = torch.tensor(frame.get("transform_matrix"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        matrix = torch.zeros(0)
    if tuple(matrix.shape) not in ((4, 4), (3, 4)):
        raise InputError(f"{where}: expected a 4x4 transform_matrix, got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise InputError(f"{where}: expected a finite transform_matrix, got NaN or infinity")
    rotation = matrix[:3, :3]
    if not torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-2):
        raise InputError(f"{where}: expected a rotation in transform_matrix, got one that scales or shears")
    if float(torch.linalg.det(rotation)) < 0:
        raise InputError(f"{where}: expected a rotation in transform_matrix, got a reflection")
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3] = matrix[:3]
    left, _, right = torch.linalg.svd(rotation)
    camera_to_world[:3, :3] = left @ right
    names = ("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_x")
    lens = {name: _number(frame.get(name, meta.get(name)), name, where) for name in names}
    return _Frame(
        file_path=frame["file_path"],
        image_path=_inside(folder, frame["file_path"], where),
        camera_to_world=(camera_to_world * AXES).float(),
        lens=lens,
    )


def _number(value: Any, name: str, where: str) -> float:
    """The value as a finite number; NaN for None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: expected {name} to be a finite number, got {str(value)[:40]!r}")
    return float(value)


def _inside(folder: Path, file_path: str, where: str) -> Path:
    """The path below the folder, with .png put to a name that has no ending.

    Raises:
        InputError: it leaves the folder.
    """
    path = folder / file_path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{where}: expected a path inside the capture, got {file_path!r}")
    return path if path.suffix else path.with_suffix(".png")


def _read_view(frame: _Frame, size: int | None) -> tuple[Tensor, Tensor]:
    """Image "3 h w" without distortion at the wanted size, and its intrinsics."""
    pixels = _read_image(frame.image_path)
    height, width = pixels.shape[:2]
    intrinsics, distortion = _lens_of(frame, width, height)
    if np.any(distortion):
        pixels, intrinsics = _undistort(pixels, intrinsics, distortion)
    longer = max(width, height)
    if size is not None and not MIN_SIDE <= size <= longer:
        raise InputError(f"{frame.image_path}: expected a size from {MIN_SIDE} to {longer} (the image), got {size}")
    scale = 1.0 if size is None else size / longer
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if (new_width, new_height) != (width, height):
        pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
        intrinsics = intrinsics * np.array([[new_width / width], [new_height / height], [1.0]])
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return image.clamp(0, 1), torch.from_numpy(intrinsics).float()


def _read_image(path: Path) -> np.ndarray:
    """RGB "h w 3" float32 in [0, 1]; what is transparent is black."""
    try:
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    except FileNotFoundError:
        raise InputError(f"{path} does not exist, though transforms.json names it") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not readable as an image: {error}") from None
    return rgba[..., :3] * rgba[..., 3:]


def _lens_of(frame: _Frame, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics in pixels of the image as it is, and OpenCV's distortion k1 k2 p1 p2 k3."""
    lens = dict(frame.lens)
    scale_x = 1.0 if math.isnan(lens["w"]) else width / lens["w"] if lens["w"] > 0 else math.nan
    scale_y = 1.0 if math.isnan(lens["h"]) else height / lens["h"] if lens["h"] > 0 else math.nan
    if math.isnan(scale_x) or math.isnan(scale_y) or abs(scale_x / scale_y - 1) > 0.02:
        raise InputError(
            f"{frame.image_path}: expected an image of the shape {lens['w']:g}x{lens['h']:g}, got {width}x{height}"
        )
    focal_x = lens["fl_x"] * scale_x
    if math.isnan(focal_x) and 0 < lens["camera_angle_x"] < math.pi:
        focal_x = 0.5 * width / math.tan(0.5 * lens["camera_angle_x"])
    focal_y = focal_x if math.isnan(lens["fl_y"]) else lens["fl_y"] * scale_y
    if not (focal_x > 0 and focal_y > 0):
        raise InputError(f"{frame.image_path}: expected fl_x above 0 or camera_angle_x in transforms.json, got neither")
    center_x = width / 2 if math.isnan(lens["cx"]) else lens["cx"] * scale_x
    center_y = height / 2 if math.isnan(lens["cy"]) else lens["cy"] * scale_y
    intrinsics = np.array([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]], dtype=np.float64)
    if lens["k4"] not in (0.0,) and not math.isnan(lens["k4"]):
        raise InputError(f"{frame.image_path}: expected no k4 with camera_model OPENCV, got {lens['k4']}")
    distortion = np.nan_to_num(np.array([lens[name] for name in ("k1", "k2", "p1", "p2", "k3")]))
    return intrinsics, distortion


def _undistort(pixels: np.ndarray, intrinsics: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take lens distortion out; the view narrows so that every pixel is seen. OpenCV's pixel centres are integers."""
    height, width = pixels.shape[:2]
    shift = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    integer_centers = intrinsics - shift
    straight, _ = cv2.getOptimalNewCameraMatrix(integer_centers, distortion, (width, height), 0)
    maps = cv2.initUndistortRectifyMap(integer_centers, distortion, np.eye(3), straight, (width, height), cv2.CV_32FC1)
    remapped = cv2.remap(pixels, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return remapped, np.asarray(straight, dtype=np.float64) + shift


def _split(meta: Mapping[str, Any], paths: list[str], folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training and held-out views: as the file says, else every 8th by name is held out."""
    lists = {name: meta.get(f"{name}_filenames") for name in ("train", "val", "test")}
    if lists["train"] is None:
        held_out = tuple(range(0, len(paths), HOLD_OUT_EVERY)) if len(paths) > 1 else ()
        return tuple(index for index in range(len(paths)) if index not in held_out), held_out
    index_of = {path: index for index, path in enumerate(paths)}
    chosen: dict[str, list[int]] = {}
    for name, files in lists.items():
        unknown = [file for file in files or () if file not in index_of] if isinstance(files, list | None) else [files]
        if unknown:
            raise InputError(f"{folder / 'transforms.json'}: {name}_filenames names no frame: {str(unknown[0])[:80]!r}")
        chosen[name] = sorted({index_of[file] for file in files or ()})
    held_out = sorted({*chosen["val"], *chosen["test"]} - set(chosen["train"]))
    if not chosen["train"]:
        raise InputError(f"{folder / 'transforms.json'}: expected at least one view in train_filenames, got none")
    return tuple(chosen["train"]), tuple(held_out)


def _read_sparse(meta: Mapping[str, Any], folder: Path) -> Points:
    """Sparse points if the file names some; they lie in the same frame as the cameras."""
    name = meta.get("ply_file_path")
    if name is None:
        return Points(torch.zeros(0, 3), torch.zeros(0, 3))
    if not isinstance(name, str):
        raise InputError(f"{folder / 'transforms.json'}: expected ply_file_path to be a path, got {str(name)[:40]}")
    return read_points(_inside(folder, name, str(folder / "transforms.json")))


def _file_names(paths: list[str]) -> tuple[str, ...]:
    """Names without folders; with them, joined by underscores, where that would make two alike."""
    names = [Path(path).name for path in paths]
    stems = {Path(name).stem for name in names}
    return tuple(names) if len(stems) == len(names) else tuple(path.lstrip("./").replace("/", "_") for path in paths)
