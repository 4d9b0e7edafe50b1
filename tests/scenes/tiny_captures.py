"""Small captures, and writers of the formats that people have, written independently of the readers that they test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture

WIDTH, HEIGHT = 20, 16
COLMAP_IDS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6,
    "FOV": 7,
    "SIMPLE_RADIAL_FISHEYE": 8,
    "RADIAL_FISHEYE": 9,
    "THIN_PRISM_FISHEYE": 10,
    "UNKNOWN": 99,
}


def small_capture(num_views: int = 9) -> Capture:
    """Random pictures from cameras on a circle; every view has a principal point of its own."""
    generator = torch.Generator().manual_seed(0)
    intrinsics = intrinsics_from_fov(0.9, WIDTH, HEIGHT).repeat(num_views, 1, 1)
    intrinsics[:, 0, 2] += torch.arange(num_views) * 0.1
    return Capture(
        name="small",
        cameras=Cameras(orbit(num_views, 3.0, height=1.0), intrinsics, WIDTH, HEIGHT),
        images=(torch.rand(num_views, 3, HEIGHT, WIDTH, generator=generator) * 255).round() / 255,
        file_names=tuple(f"view_{index:02d}.png" for index in range(num_views)),
        points=torch.randn(7, 3, generator=generator),
        point_colors=(torch.rand(7, 3, generator=generator) * 255).round() / 255,
        train_indices=tuple(range(num_views - 2)),
        held_out_indices=(num_views - 2, num_views - 1),
    )


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the `transforms.json` of a folder in place."""
    meta = json.loads((folder / "transforms.json").read_text())
    edit(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))


def save_images(images: Tensor, folder: Path, names: Iterable[str]) -> None:
    for image, name in zip(images, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name)


@dataclass
class ColmapModel:
    """A COLMAP model in plain numbers, to be written as text or as binary."""

    cameras: dict[int, tuple[str, int, int, tuple[float, ...]]]
    images: list[tuple[int, np.ndarray, np.ndarray, int, str]]
    """Id, quaternion wxyz, translation, camera id, name."""
    points: list[tuple[int, np.ndarray, tuple[int, int, int]]] = field(default_factory=list)

    @classmethod
    def of_capture(cls, capture: Capture, model: str = "PINHOLE", extra: tuple[float, ...] = ()) -> ColmapModel:
        """Make one camera per view, in the capture's own world."""
        cameras, images = {}, []
        for index, name in enumerate(capture.file_names):
            (fx, _, cx), (_, fy, cy), _ = capture.cameras.intrinsics[index].double().tolist()
            simple = model.startswith("SIMPLE") or model.startswith("RADIAL")
            params = (fx, cx, cy, *extra) if simple else (fx, fy, cx, cy, *extra)
            cameras[index + 1] = (model, capture.cameras.width, capture.cameras.height, params)
            matrix = np.linalg.inv(capture.cameras.camera_to_world[index].double().numpy())
            x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
            images.append((index + 10, np.array([w, x, y, z]), matrix[:3, 3], index + 1, name))
        colors = (capture.point_colors * 255).round().int().tolist()
        points = [
            (index + 5, position, (color[0], color[1], color[2]))
            for index, (position, color) in enumerate(zip(capture.points.double().numpy(), colors, strict=True))
        ]
        return cls(cameras, images, points)

    def write_text(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["# Camera list", "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
        for number, (model, width, height, params) in self.cameras.items():
            lines.append(f"{number} {model} {width} {height} {' '.join(map(repr, params))}")
        (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
        lines = ["# Image list with two lines of data per image:"]
        for number, rotation, translation, camera, name in self.images:
            pose = " ".join(repr(float(value)) for value in (*rotation, *translation))
            observations = "1.5 2.5 -1 3.5 4.5 7" if number % 2 else ""
            lines += [f"{number} {pose} {camera} {name}", observations]
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        lines = ["# 3D point list"]
        for number, position, color in self.points:
            xyz = " ".join(repr(float(value)) for value in position)
            lines.append(f"{number} {xyz} {' '.join(map(str, color))} 0.5 10 0 11 1")
        (folder / "points3D.txt").write_text("\n".join(lines) + "\n")

    def write_binary(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        data = bytearray(struct.pack("<Q", len(self.cameras)))
        for number, (model, width, height, params) in self.cameras.items():
            data += struct.pack("<iiQQ", number, COLMAP_IDS[model], width, height)
            data += struct.pack(f"<{len(params)}d", *params)
        (folder / "cameras.bin").write_bytes(data)
        data = bytearray(struct.pack("<Q", len(self.images)))
        for number, rotation, translation, camera, name in self.images:
            data += struct.pack("<i7di", number, *rotation, *translation, camera) + name.encode() + b"\0"
            data += struct.pack("<Q", number % 2) + struct.pack("<ddq", 1.5, 2.5, -1) * (number % 2)
        (folder / "images.bin").write_bytes(data)
        data = bytearray(struct.pack("<Q", len(self.points)))
        for number, position, color in self.points:
            data += struct.pack("<Q3d3Bd", number, *position, *color, 0.5)
            data += struct.pack("<Q", 2) + struct.pack("<iiii", 10, 0, 11, 1)
        (folder / "points3D.bin").write_bytes(data)
