"""PLY files: splats in the layout of 3D Gaussian splatting, which viewers open, and colored sparse points.

Such files come from anywhere: headers are bounded, and counts are checked against the file's length before anything is
allocated.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, write_atomically
from restage.scenes.config import MAX_DEGREE
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Points", "read_points", "read_splats", "read_vertices", "splats_in", "write_points", "write_splats"]
__all__ += ["write_vertices"]

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

    positions: Float[Tensor, "m 3"]  # float64 where the file has such numbers
    colors: Float[Tensor, "m 3"]  # RGB in [0, 1]


def write_splats(splats: Splats, path: Path) -> None:
    """Write splats as binary PLY: x y z, normals (0), f_dc, f_rest by channel, opacity logit, log scales, wxyz.

    Every number keeps its bits; only a rotation of length 0, which viewers divide by, becomes (1, 0, 0, 0), which is
    how it is drawn here. Centers in float64 are written as doubles. NaN, infinity, or no splats at all are refused, and
    nothing is written.
    """
    if not len(splats):
        raise InputError(f"{path}: expected at least one splat to write, got none")
    for name, tensor in splats.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: expected finite values, got NaN or infinity in {name}")
    rotations = splats.rotations.detach().clone()
    rotations[(rotations == 0).all(dim=1)] = rotations.new_tensor([1.0, 0.0, 0.0, 0.0])
    rest = splats.sh.detach()[:, 1:].transpose(1, 2).flatten(1)
    columns = {
        **_columns("{}", ("x", "y", "z"), splats.means),
        **_columns("n{}", ("x", "y", "z"), torch.zeros_like(splats.log_scales)),
        **_columns("f_dc_{}", range(3), splats.sh[:, 0]),
        **_columns("f_rest_{}", range(rest.shape[1]), rest),
        **_columns("{}", ["opacity"], splats.opacity_logits[:, None]),
        **_columns("scale_{}", range(3), splats.log_scales),
        **_columns("rot_{}", range(4), rotations),
    }
    write_vertices(columns, path)


def read_splats(path: Path) -> Splats:
    """Read splats from a PLY in the 3DGS layout, such as of the original code, gsplat or `ns-export gaussian-splat`.

    Splats with NaN or infinity are left out, with a warning that counts them; an infinite opacity is opaque. Spherical
    harmonics of a degree above 3 are cut off there, with a warning. Colors as red, green and blue in place of f_dc
    (`ns-export --ply-color-mode rgb`) are taken too. The columns may stand in any order. Refused are other formats of
    splats, by name, other layouts, and files that are cut off or without any splat.
    """
    if (form := splats_in(path)) not in ("", "PLY"):
        way = "" if "PLY" in form or "ply" in form else f"; {A_WAY}"
        raise InputError(f"{path}: expected splats as PLY, got {form}{way}")
    vertices = read_vertices(path)
    names = set(vertices.dtype.names or ())
    if "packed_position" in names:
        raise InputError(f"{path}: expected a plain PLY, got the compressed PLY of PlayCanvas and SuperSplat; {A_WAY}")
    if {"opacity", "scale_0", "scale_1"} <= names and "scale_2" not in names:
        raise InputError(
            f"{path}: expected splats with three scales, got the flat ones of 2D Gaussian splatting (two scales, no "
            "scale_2); fit the capture instead: restage fit CAPTURE"
        )
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
        sh=((_read_rgb(vertices) - 0.5) / SH_C0)[:, None] if has_rgb else _read_sh(vertices, path),
    )
    whole = [t.isfinite().reshape(len(t), math.prod(t.shape[1:])).all(dim=1) for t in splats.parameters().values()]
    is_finite = torch.stack(whole).all(dim=0)
    num_broken = int((~is_finite).sum())
    if not num_broken:
        return splats
    if num_broken == len(splats):
        raise InputError(f"{path} holds no usable splat: all {num_broken} have NaN or infinity")
    warnings.warn(f"{path}: {num_broken} of {len(splats)} splats have NaN or infinity and are left out", stacklevel=2)
    return splats[is_finite]


def splats_in(path: Path) -> str:
    """Name the format of a file's splats by its first bytes or its name, else nothing; refuses a file without any."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        first = file.read(4)
        file.seek(0)
        try:
            elements = _read_header(file)[1] if first[:3] == b"ply" else []
        except ValueError:  # `read_vertices` says what is wrong with it
            elements = []
    if not first:
        raise InputError(f"{path} is an empty file")
    if any(element.name == "vertex" and not element.count for element in elements):
        raise InputError(f"{path} is a PLY without any splat: its header says 'element vertex 0'")
    named = "PLY" if first[:3] == b"ply" else SUFFIXES.get(path.suffix.lower(), "")
    return next((form for magic, form in OTHER_FORMATS if first.startswith(magic)), named)


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


def _read_rgb(vertices: np.ndarray) -> Tensor:
    rgb = _matrix(vertices, ["red", "green", "blue"])
    return rgb / 255 if np.issubdtype(vertices["red"].dtype, np.integer) else rgb


def write_points(positions: Float[Tensor, "m 3"], path: Path, *, colors: Float[Tensor, "m 3"]) -> None:
    """Write colored points as binary PLY; colors are rounded to 8 bits."""
    bytes_ = (colors.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    columns = _columns("{}", "xyz", positions.float()) | _columns("{}", ("red", "green", "blue"), bytes_)
    write_vertices(columns, path)


def read_points(path: Path) -> Points:
    """Read points with colors; gray where the file has none, and without those that are not finite, with a warning."""
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
    has_colors = {"red", "green", "blue"} <= names
    colors = _read_rgb(vertices).clamp(0, 1) if has_colors else torch.full((len(positions), 3), 0.5)
    return Points(positions[is_finite], colors[is_finite])


def _columns(pattern: str, keys: Iterable[object], matrix: Tensor) -> dict[str, np.ndarray]:
    columns = matrix.detach().cpu().unbind(1)
    return {pattern.format(key): column.numpy() for key, column in zip(keys, columns, strict=True)}


def _matrix(vertices: np.ndarray, names: list[str], kind: type = np.float32) -> Tensor:
    matrix = np.empty((len(vertices), len(names)), kind)
    for index, name in enumerate(names):
        matrix[:, index] = vertices[name]
    return torch.from_numpy(matrix)


TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
NAMES = {"f4": "float", "f8": "double", "u1": "uchar"}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
MAX_LINE = 65536
"""Bytes of a line of text."""
MAX_LINES = 2048
"""Lines of a header; splats with harmonics of degree 4 have some hundred."""


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[tuple[str, str]]  # names and numpy types; the type of a list is empty


def read_vertices(path: Path) -> np.ndarray:
    """Read the element `vertex`, all plain numbers: one row a vertex, one named column a property."""
    if not path.is_file():  # to open a pipe would wait for whoever writes into it
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            form, elements = _read_header(file)
            at = next((index for index, element in enumerate(elements) if element.name == "vertex"), None)
            if at is None:
                raise ValueError("it has no element vertex")
            if not elements[at].properties:
                raise ValueError("its vertices have no properties")
            if any(not kind for element in elements[: at + 1] for _, kind in element.properties):
                raise ValueError("it has lists up to its vertices; expected one number a property")
            read = _read_text if form == "ascii" else _read_binary
            return read(file, elements[: at + 1], BYTE_ORDERS[form])
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable as a PLY file with vertices: {reason[:200]}") from None


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    if file.readline(MAX_LINE).rstrip() != b"ply":
        raise ValueError("it does not start with 'ply'")
    form, elements = "", []
    for _ in range(MAX_LINES):
        line = file.readline(MAX_LINE)
        words = line.decode("latin-1").split()
        if not line.endswith(b"\n"):
            raise ValueError("its header does not end, or has an overlong line")
        if words == ["end_header"]:
            if form not in BYTE_ORDERS:
                raise ValueError(f"expected a format of {', '.join(BYTE_ORDERS)}, got {form[:40]!r}")
            return form, elements
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", form, _]:
                pass
            case ["element", name, count] if count.isdecimal() and count.isascii():
                elements.append(_Element(name, int(count[:20]), []))
            case ["property", kind, name] if kind in TYPES and elements:
                elements[-1].properties.append((name, TYPES[kind]))
            case ["property", "list", _, _, name] if elements:
                elements[-1].properties.append((name, ""))
            case _:
                raise ValueError(f"its header has the line {' '.join(words)[:80]!r}")
    raise ValueError(f"its header has more than {MAX_LINES} lines")


def _read_binary(file: BinaryIO, elements: list[_Element], order: str) -> np.ndarray:
    kinds = [np.dtype([(name, f"{order}{kind}") for name, kind in element.properties]) for element in elements]
    sizes = [element.count * kind.itemsize for element, kind in zip(elements, kinds, strict=True)]
    start = file.tell()
    length = file.seek(0, 2) - start
    if sum(sizes) > length:
        raise ValueError(f"expected {sum(sizes)} bytes of vertices, got {length}; the file is cut off")
    file.seek(start + sum(sizes[:-1]))
    rows = np.frombuffer(file.read(sizes[-1]), kinds[-1], count=elements[-1].count)
    return rows.astype(rows.dtype.newbyteorder("="))


def _read_text(file: BinaryIO, elements: list[_Element], order: str) -> np.ndarray:
    properties = elements[-1].properties
    first, count = sum(element.count for element in elements[:-1]), elements[-1].count
    start = file.tell()
    has_room = 2 * len(properties) * count <= file.seek(0, 2) - start + 1
    file.seek(start)
    lines = (line for line in iter(lambda: file.readline(MAX_LINE), b"") if line.strip())
    rows = [line.split() for line in itertools.islice(lines, first, first + count)] if has_room else []
    if len(rows) < count or any(len(row) != len(properties) for row in rows):
        raise ValueError(f"expected {count} lines of {len(properties)} numbers; the file is cut off")
    numbers = np.array(rows, dtype=np.float64).reshape(len(rows), len(properties))
    table = np.empty(len(rows), properties)
    for index, (name, _) in enumerate(properties):
        table[name] = numbers[:, index]
    return table


def write_vertices(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Write named columns of float32, float64 or uint8 as binary PLY, little endian."""
    count = len(next(iter(columns.values())))
    kinds = {name: column.dtype.str[1:] for name, column in columns.items()}
    vertices = np.empty(count, dtype=[(name, f"<{kind}") for name, kind in kinds.items()])
    for name, column in columns.items():
        vertices[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property {NAMES[kind]} {name}" for name, kind in kinds.items()]
    with write_atomically(path) as temporary:
        with temporary.open("wb") as file:
            file.write("\n".join([*header, "end_header\n"]).encode())
            file.write(vertices.tobytes())
