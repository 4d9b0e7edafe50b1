"""PLY files: splats in the layout of 3D Gaussian splatting, which viewers open, and colored sparse points."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.io.ply_table import read_vertices, write_vertices
from restage.scenes.splats import MAX_DEGREE, SH_C0, Splats

__all__ = ["Points", "read_points", "read_splats", "write_points", "write_splats"]

NUM_REST = (0, 9, 24, 45, 72)
"""Columns f_rest_* of degree 0 to 4."""
OPAQUE_LOGIT = 16.0
"""Stands for an infinite opacity; its sigmoid is 1 within float32's precision."""
OTHER_FORMATS = (
    (b"NGSP", "SPZ (Niantic)"),
    (b"PK\x03\x04", "SOG (PlayCanvas) or another archive"),
    (b"\x1f\x8b", "SPZ (Niantic), compressed"),
    (b"glTF", "binary glTF"),
)
"""First bytes of formats that hold splats but are not PLY."""
SUFFIXES = {
    ".splat": "the .splat format of antimatter15's viewer",
    ".ksplat": "the .ksplat format of mkkellogg's viewer",
    ".spz": "SPZ (Niantic)",
    ".sog": "SOG (PlayCanvas)",
    ".ckpt": "a checkpoint of nerfstudio; write a PLY with: ns-export gaussian-splat",
    ".pth": "a checkpoint of 3D Gaussian splatting; its point_cloud/iteration_*/point_cloud.ply is read",
}
A_WAY = "convert it to a plain PLY, for instance with: npx @playcanvas/splat-transform IN OUT.ply"


class Points(NamedTuple):
    """Colored points."""

    positions: Float[Tensor, "m 3"]
    """float64 where the file has such numbers."""
    colors: Float[Tensor, "m 3"]
    """RGB in [0, 1]."""


def write_splats(splats: Splats, path: Path) -> None:
    """Write splats as binary PLY: x y z, normals (0), f_dc, f_rest by channel, opacity logit, log scales, wxyz.

    Every number keeps its bits; only a rotation of length 0, which viewers divide by, becomes (1, 0, 0, 0), which is
    how it is drawn here. Centers in float64 are written as doubles.

    Raises:
        InputError: a number is NaN or infinite; nothing is written.
    """
    for name, tensor in splats.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: expected finite values, got NaN or infinity in {name}")
    rotations = splats.rotations.detach().clone()
    rotations[(rotations == 0).all(dim=1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    rest = splats.sh.detach()[:, 1:].transpose(1, 2).flatten(1)
    columns = {
        **_columns("{}", ("x", "y", "z"), splats.means),
        **_columns("n{}", ("x", "y", "z"), torch.zeros_like(splats.log_scales)),
        **_columns("f_dc_{}", range(3), splats.sh[:, 0]),
        **_columns("f_rest_{}", range(rest.shape[1]), rest),
        "opacity": splats.opacity_logits.detach(),
        **_columns("scale_{}", range(3), splats.log_scales),
        **_columns("rot_{}", range(4), rotations),
    }
    write_vertices({name: column.cpu().numpy() for name, column in columns.items()}, path)


def read_splats(path: Path) -> Splats:
    """Read splats from a PLY in the 3DGS layout, such as of the original code, gsplat or `ns-export gaussian-splat`.

    Splats with NaN or infinity are left out, with a warning that counts them; an infinite opacity is opaque. Spherical
    harmonics of a degree above 3 are cut off there, with a warning. Colors as red, green and blue in place of f_dc
    (`ns-export --ply-color-mode rgb`) are taken too. The columns may stand in any order.

    Raises:
        InputError: no such file, not a PLY, not this layout, or cut off; other formats of splats are named.
    """
    _refuse_other_formats(path)
    vertices = read_vertices(path)
    names = set(vertices.dtype.names or ())
    _refuse_other_layouts(names, path)
    has_rgb = not any(name.startswith("f_dc_") for name in names) and {"red", "green", "blue", "opacity"} <= names
    expected = ["x", "y", "z", "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    expected += [] if has_rgb else [f"f_dc_{i}" for i in range(3)]
    missing = sorted(set(expected) - names)
    if missing:
        raise InputError(f"{path}: expected splats in the 3DGS layout, got a PLY without {', '.join(missing)}")
    logits = _matrix(vertices, ["opacity"])[:, 0]
    splats = Splats(
        means=_matrix(vertices, ["x", "y", "z"]),
        log_scales=_matrix(vertices, [f"scale_{i}" for i in range(3)]),
        rotations=_matrix(vertices, [f"rot_{i}" for i in range(4)]),
        opacity_logits=torch.where(logits.isinf(), logits.sign() * OPAQUE_LOGIT, logits).contiguous(),
        sh=_rgb_as_sh(vertices) if has_rgb else _read_sh(vertices, path),
    )
    if all(tensor.isfinite().all() for tensor in splats.parameters().values()):
        return splats
    whole = [tensor.isfinite().reshape(len(splats), -1).all(dim=1) for tensor in splats.parameters().values()]
    is_finite = torch.stack(whole).all(dim=0)
    num_broken = int((~is_finite).sum())
    warnings.warn(f"{path}: {num_broken} of {len(splats)} splats have NaN or infinity and are left out", stacklevel=2)
    return splats[is_finite]


def _refuse_other_formats(path: Path) -> None:
    """Name the format of a file that holds splats in another way.

    Raises:
        InputError: it is such a file.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.read(4)
    form = next((form for magic, form in OTHER_FORMATS if first.startswith(magic)), None)
    form = form or (None if first[:3] == b"ply" else SUFFIXES.get(path.suffix.lower()))
    if form is not None:
        way = "" if "PLY" in form or "ply" in form else f"; {A_WAY}"
        raise InputError(f"{path}: expected splats as PLY, got {form}{way}")


def _refuse_other_layouts(names: set[str], path: Path) -> None:
    """Name the kind of a PLY that holds splats in another layout.

    Raises:
        InputError: it is such a PLY.
    """
    if "packed_position" in names:
        raise InputError(f"{path}: expected a plain PLY, got the compressed PLY of PlayCanvas and SuperSplat; {A_WAY}")
    if {"opacity", "scale_0", "scale_1"} <= names and "scale_2" not in names:
        raise InputError(
            f"{path}: expected splats with three scales, got the flat ones of 2D Gaussian splatting (two scales, no "
            "scale_2); fit the capture instead: restage fit CAPTURE"
        )


def _read_sh(vertices: np.ndarray, path: Path) -> Tensor:
    """Spherical harmonics "n k 3"; the file has f_rest channel by channel."""
    num_rest = sum(name.startswith("f_rest_") for name in vertices.dtype.names or ())
    if num_rest not in NUM_REST or any(f"f_rest_{i}" not in (vertices.dtype.names or ()) for i in range(num_rest)):
        raise InputError(f"{path}: expected {', '.join(map(str, NUM_REST))} columns f_rest_*, got {num_rest}")
    degree, kept = NUM_REST.index(num_rest), min(num_rest // 3, (MAX_DEGREE + 1) ** 2 - 1)
    if degree > MAX_DEGREE:
        message = f"{path}: spherical harmonics of degree {degree} are cut to degree {MAX_DEGREE}; views may change"
        warnings.warn(message, stacklevel=3)
    columns = [f"f_rest_{channel * (num_rest // 3) + index}" for index in range(kept) for channel in range(3)]
    names = ["f_dc_0", "f_dc_1", "f_dc_2", *columns]
    return _matrix(vertices, names).reshape(len(vertices), 1 + kept, 3)


def _rgb_as_sh(vertices: np.ndarray) -> Tensor:
    rgb = _matrix(vertices, ["red", "green", "blue"])
    rgb = rgb / 255 if np.issubdtype(vertices["red"].dtype, np.integer) else rgb
    return ((rgb - 0.5) / SH_C0)[:, None]


def write_points(positions: Float[Tensor, "m 3"], path: Path, *, colors: Float[Tensor, "m 3"]) -> None:
    """Write colored points as binary PLY; colors are rounded to 8 bits."""
    columns: dict[str, np.ndarray] = {
        name: column.numpy().astype("f4") for name, column in _columns("{}", "xyz", positions).items()
    }
    for name, column in zip(("red", "green", "blue"), colors.detach().unbind(1), strict=True):
        columns[name] = (column.clamp(0, 1) * 255 + 0.5).numpy().astype("u1")
    write_vertices(columns, path)


def read_points(path: Path) -> Points:
    """Read points with colors; gray where the file has none, and without those that are not finite, with a warning.

    Raises:
        InputError: no such file, not a PLY, or no positions.
    """
    vertices = read_vertices(path)
    names = set(vertices.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        raise InputError(f"{path}: expected vertices with x, y and z, got {sorted(names)}")
    is_double = any(vertices.dtype[name] == np.float64 for name in "xyz")
    positions = _matrix(vertices, ["x", "y", "z"], np.float64 if is_double else np.float32)
    is_finite = torch.isfinite(positions).all(dim=1)
    if not is_finite.all():
        num_broken = int((~is_finite).sum())
        warnings.warn(f"{path}: {num_broken} of {len(positions)} points are not finite and left out", stacklevel=2)
    if {"red", "green", "blue"} <= names:
        colors = _matrix(vertices, ["red", "green", "blue"])
        colors = (colors / 255 if np.issubdtype(vertices["red"].dtype, np.integer) else colors).clamp(0, 1)
    else:
        colors = torch.full((len(positions), 3), 0.5)
    return Points(positions[is_finite], colors[is_finite])


def _columns(pattern: str, keys: Any, matrix: Tensor) -> dict[str, Tensor]:
    return {pattern.format(key): column for key, column in zip(keys, matrix.detach().unbind(1), strict=True)}


def _matrix(vertices: np.ndarray, names: list[str], kind: type = np.float32) -> Tensor:
    matrix = np.empty((len(vertices), len(names)), kind)
    for index, name in enumerate(names):
        matrix[:, index] = vertices[name]
    return torch.from_numpy(matrix)
