"""PLY files: splats in the layout of 3D Gaussian splatting, which viewers open, and coloured sparse points."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from restage.records import InputError, write_atomically
from restage.scenes.splats import Splats

__all__ = ["Points", "read_points", "read_splats", "write_points", "write_splats"]


class Points(NamedTuple):
    """Coloured points."""

    positions: Float[Tensor, "m 3"]
    colors: Float[Tensor, "m 3"]
    """RGB in [0, 1]."""


def write_splats(splats: Splats, path: Path) -> None:
    """Write splats as binary PLY: x y z, normals (0), f_dc, f_rest by channel, opacity logit, log scales, wxyz."""
    rotations = torch.nn.functional.normalize(splats.rotations.detach(), dim=1)
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
    _write_vertices({name: column.numpy().astype("<f4") for name, column in columns.items()}, path)


def read_splats(path: Path) -> Splats:
    """Read splats from a PLY in the 3DGS layout, spherical harmonics up to degree 2 (of more, the rest is refused).

    Raises:
        InputError: no such file, not a PLY, not this layout, or values that are not finite.
    """
    vertices = _read_vertices(path)
    names = set(vertices.dtype.names or ())
    expected = ["x", "y", "z", "opacity", *(f"{kind}_{i}" for kind in ("f_dc", "scale") for i in range(3))]
    missing = sorted({*expected, *(f"rot_{i}" for i in range(4))} - names)
    num_rest = sum(name.startswith("f_rest_") for name in names)
    if missing:
        raise InputError(f"{path}: expected splats in the 3DGS layout, got a PLY without {', '.join(missing)}")
    if num_rest not in (0, 9, 24) or any(f"f_rest_{index}" not in names for index in range(num_rest)):
        raise InputError(f"{path}: expected 0, 9 or 24 columns f_rest_*, got {num_rest}; export with sh degree 0 to 2")
    rest = _matrix(vertices, [f"f_rest_{index}" for index in range(num_rest)])
    rest = rest.reshape(len(vertices), 3, num_rest // 3).transpose(1, 2)
    splats = Splats(
        means=_matrix(vertices, ["x", "y", "z"]),
        log_scales=_matrix(vertices, [f"scale_{i}" for i in range(3)]),
        rotations=_matrix(vertices, [f"rot_{i}" for i in range(4)]),
        opacity_logits=_matrix(vertices, ["opacity"])[:, 0].contiguous(),
        sh=torch.cat([_matrix(vertices, [f"f_dc_{i}" for i in range(3)])[:, None], rest], dim=1).contiguous(),
    )
    for name, tensor in splats.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: expected finite values, got NaN or infinity in {name}")
    return splats


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
    except (PlyParseError, KeyError, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is not readable as a PLY file with vertices: {error}") from None
    return np.asarray(vertices)
