"""Binary glTF with the extension KHR_gaussian_splatting, which engines and globes read; written only.

The extension: https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from restage.scenes.io.packing import alphas_of, flip_axes, unit_rotations
from restage.scenes.splats import SH_C0, Splats

__all__ = ["write_gltf"]

EXTENSION = "KHR_gaussian_splatting"
KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
FLOAT, UBYTE, ARRAY_BUFFER, POINTS = 5126, 5121, 34962, 0
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942


def write_gltf(splats: Splats, path: Path) -> None:
    """Write a .glb; y is up there and -x right, so that what is down and right in a PLY is turned half around z.

    Viewers that do not know the extension show points with the splats' colors.
    """
    splats = flip_axes(splats, x=-1, y=-1)
    alphas = alphas_of(splats)
    columns = {
        "POSITION": splats.means.numpy(),
        "COLOR_0": _fallback_colors(splats, alphas),
        f"{EXTENSION}:ROTATION": np.roll(unit_rotations(splats), -1, axis=1),
        f"{EXTENSION}:SCALE": splats.log_scales.exp().numpy(),
        f"{EXTENSION}:OPACITY": alphas[:, None],
    }
    for degree in range(splats.degree + 1):
        for index in range(2 * degree + 1):
            columns[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}"] = splats.sh[:, degree**2 + index].numpy()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    content = b""
    parts = []
    length = 0
    for index, values in enumerate(columns.values()):
        is_bytes = values.dtype == np.uint8
        content = np.ascontiguousarray(values if is_bytes else values.astype("<f4")).tobytes()
        views.append({"buffer": 0, "byteOffset": length, "byteLength": len(content), "target": ARRAY_BUFFER})
        accessor = {"bufferView": index, "componentType": UBYTE if is_bytes else FLOAT, "count": len(splats)}
        accessors.append(accessor | {"type": KINDS[values.shape[1]]} | ({"normalized": True} if is_bytes else {}))
        parts.append(content)
        length += len(content)  # a multiple of 4, as accessors have to begin at
    means = columns["POSITION"]
    accessors[0] |= {"min": means.min(axis=0).tolist(), "max": means.max(axis=0).tolist()}
    how = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    how |= {"projection": "perspective", "sortingMethod": "cameraDistance"}
    attributes = {name: index for index, name in enumerate(columns)}
    document = {
        "asset": {"version": "2.0", "generator": "Restage"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": POINTS, "extensions": {EXTENSION: how}}]}],
        "buffers": [{"byteLength": length}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + length))
        file.write(struct.pack("<II", len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<II", length, BINARY_CHUNK))
        file.writelines(parts)


def _fallback_colors(splats: Splats, alphas: np.ndarray) -> np.ndarray:
    """RGBA bytes; glTF has vertex colors linear, ours are sRGB."""
    srgb = (0.5 + SH_C0 * splats.sh[:, 0].numpy()).clip(0, 1)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, alphas[:, None]], axis=1) * 255).astype(np.uint8)
