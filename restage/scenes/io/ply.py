"""PLY files: splats in the layout of 3D Gaussian splatting, which viewers open, and coloured sparse points."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from restage.records import InputError, write_atomically
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Points", "read_points", "read_splats", "write_points", "write_splats"]

MAX_DEGREE = 2
"""Of spherical harmonics in `Splats`."""
NUM_REST = (0, 9, 24, 45, 72)
"""Columns f_rest_* of degree 0 to 4."""


class Points(NamedTuple):
    """Coloured points."""

    positions: Float[Tensor, "m 3"]
    colors: Float[Tensor, "m 3"]
    """RGB in [0, 1]."""


def write_splats(splats: Splats, path: Path) -> None:
    """Write splats as binary PLY: x y z, normals (0), f_dc, f_rest by channel, opacity logit, log scales, wxyz.

    Every number keeps its bits; only a rotation of length 0, which viewers divide by, becomes (1, 0, 0, 0), which is
    how it is drawn here.

    Raises:
        InputError: a number is NaN or infinite; nothing is written.
    """
    _check_finite(splats, path)
    rotations = splats.rotations.detach().clone()
    rotations[(rotations == 0).all(dim=1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    rest = splats.sh.detach()[:, 1:].transpose(1, 2).flatten(1)
    columns = {
        **_columns("{}", ("x", "y", "z"), splats.means),
        **_columns("n{}", ("x", "y", "z"), torch.zeros_like(splats.means)),
        **_columns("f_dc_{}", range(3), splats.sh[:, 0]),
        **_columns("f_rest_{}", range(rest.shape[1]), rest),
        "opacity": splats.opacity_logits.detach(),
        **_columns("scale_{}", range(3), splats.log_scales),
        **_columns("rot_{}", range(4), rotations),
    }
    _write_vertices({name: column.cpu().numpy().astype("<f4") for name, column in columns.items()}, path)


def read_splats(path: Path) -> Splats:
    """Read splats from a PLY in the 3DGS layout, such as of the original code, gsplat or `ns-export gaussian-splat`.

    Spherical harmonics of a degree above 2 are cut off there, with a warning. Colours as red, green and blue in place
    of f_dc (`ns-export --ply-color-mode rgb`) are taken too. The columns may stand in any order.

    Raises:
        InputError: no such file, not a PLY, not this layout, cut off, or values that are not finite.
    """
    vertices = _read_vertices(path)
    names = set(vertices.dtype.names or ())
    has_rgb = not any(name.startswith("f_dc_") for name in names) and {"red", "green", "blue", "opacity"} <= names
    expected = ["x", "y", "z", "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    expected += [] if has_rgb else [f"f_dc_{i}" for i in range(3)]
    missing = sorted(set(expected) - names)
    if missing:
        raise InputError(f"{path}: expected splats in the 3DGS layout, got a PLY without {', '.join(missing)}")
    splats = Splats(
        means=_matrix(vertices, ["x", "y", "z"]),
        log_scales=_matrix(vertices, [f"scale_{i}" for i in range(3)]),
        rotations=_matrix(vertices, [f"rot_{i}" for i in range(4)]),
        opacity_logits=_matrix(vertices, ["opacity"])[:, 0].contiguous(),
        sh=_rgb_as_sh(vertices) if has_rgb else _read_sh(vertices, path),
    )
    _check_finite(splats, path)
    return splats


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


def _check_finite(splats: Splats, path: Path) -> None:
    for name, tensor in splats.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: expected finite values, got NaN or infinity in {name}")


def write_points(positions: Float[Tensor, "m 3"], path: Path, *, colors: Float[Tensor, "m 3"]) -> None:
    """Write coloured points as binary PLY; colours are rounded to 8 bits."""
    columns: dict[str, np.ndarray] = {
        name: column.numpy().astype("<f4") for name, column in _columns("{}", "xyz", positions).items()
    }
    for name, column in zip(("red", "green", "blue"), colors.detach().unbind(1), strict=True):
        columns[name] = (column.clamp(0, 1) * 255 + 0.5).numpy().astype("u1")
    _write_vertices(columns, path)


def read_points(path: Path) -> Points:
    """Read points with colours; grey where the file has none.

    Raises:
        InputError: no such file, not a PLY, no positions, or positions that are not finite.
    """
    vertices = _read_vertices(path)
    names = set(vertices.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        raise InputError(f"{path}: expected vertices with x, y and z, got {sorted(names)}")
    positions = _matrix(vertices, ["x", "y", "z"])
    if not torch.isfinite(positions).all():
        raise InputError(f"{path}: expected finite positions, got NaN or infinity")
    if not {"red", "green", "blue"} <= names:
        return Points(positions, torch.full_like(positions, 0.5))
    colors = _matrix(vertices, ["red", "green", "blue"])
    is_integer = np.issubdtype(vertices["red"].dtype, np.integer)
    return Points(positions, (colors / 255 if is_integer else colors).clamp(0, 1))


def _columns(pattern: str, keys: Any, matrix: Tensor) -> dict[str, Tensor]:
    return {pattern.format(key): column for key, column in zip(keys, matrix.detach().unbind(1), strict=True)}


def _matrix(vertices: np.ndarray, names: list[str]) -> Tensor:
    matrix = np.empty((len(vertices), len(names)), np.float32)
    for index, name in enumerate(names):
        matrix[:, index] = vertices[name]
    return torch.from_numpy(matrix)


def _write_vertices(columns: dict[str, np.ndarray], path: Path) -> None:
    count = len(next(iter(columns.values())))
    vertices = np.empty(count, dtype=[(name, column.dtype.str) for name, column in columns.items()])
    for name, column in columns.items():
        vertices[name] = column
    with write_atomically(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))


def _read_vertices(path: Path) -> np.ndarray:
    try:
        data = PlyData.read(str(path))
        vertices = data["vertex"].data
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (PlyParseError, KeyError, ValueError, EOFError, OSError, MemoryError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable as a PLY file with vertices: {reason[:200]}") from None
    if any(vertices.dtype[index].hasobject for index in range(len(vertices.dtype))):
        raise InputError(f"{path}: expected vertices with one number a property, got lists")
    return np.asarray(vertices)
