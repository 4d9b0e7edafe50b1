"""PLY files: splats in the layout of 3D Gaussian splatting, which viewers open, and colored sparse points.

Such files come from anywhere: headers are bounded, and counts are checked against the file's length before anything is
allocated.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, write_atomically
from restage.scenes.config import MAX_DEGREE
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Points", "columns_in", "read_ply", "read_points", "read_vertices", "save_elements", "write_ply"]
__all__ += ["write_points", "write_vertices"]

NUM_REST = (0, 9, 24, 45, 72)
"""Columns f_rest_* of degree 0 to 4."""
FILTER = "filter_3D"
"""Column with the standard deviation that Mip-Splatting widens a splat by, in world units."""
OPAQUE_LOGIT = 16.0
"""Stands for an infinite opacity; its sigmoid is 1 within float32's precision."""


class Points(NamedTuple):
    """Colored points."""

    positions: Float[Tensor, "m 3"]  # float64 where the file has such numbers
    colors: Float[Tensor, "m 3"]  # RGB in [0, 1]


def write_ply(splats: Splats, path: Path) -> None:
    """Write splats as binary PLY: x y z, normals (0), f_dc, f_rest by channel, opacity logit, log scales, wxyz.

    Every number keeps its bits; only a rotation of length 0, which viewers divide by, becomes (1, 0, 0, 0), which is
    how it is drawn here. Centers in float64 are written as doubles.
    """
    rotations = splats.rotations.clone()
    rotations[(rotations == 0).all(dim=1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    rest = splats.sh[:, 1:].transpose(1, 2).flatten(1)
    columns = {
        **_columns("{}", ("x", "y", "z"), splats.means),
        **_columns("n{}", ("x", "y", "z"), torch.zeros_like(splats.log_scales)),
        **_columns("f_dc_{}", range(3), splats.sh[:, 0]),
        **_columns("f_rest_{}", range(rest.shape[1]), rest),
        **_columns("{}", ["opacity"], splats.opacity_logits[:, None]),
        **_columns("scale_{}", range(3), splats.log_scales),
        **_columns("rot_{}", range(4), rotations),
    }
    save_elements({"vertex": columns}, path)


def read_ply(path: Path) -> Splats:
    """Read splats from a PLY in the 3DGS layout, such as of the original code, gsplat or `ns-export gaussian-splat`.

    An infinite opacity is opaque; other numbers are as they stand. Spherical harmonics of a degree above 3 are cut off
    there, with a warning. Colors as red, green and blue in place of f_dc (`ns-export --ply-color-mode rgb`) are taken
    too. The columns may stand in any order; others are passed over, but for the widths of Mip-Splatting's filter, which
    splats are drawn with. Refused are other layouts, and files that are cut off or without any splat.
    """
    vertices = read_vertices(path)
    names = set(vertices.dtype.names or ())
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
    return _widened(splats, _matrix(vertices, [FILTER])) if FILTER in names else splats


def _widened(splats: Splats, widths: Float[Tensor, "n 1"]) -> Splats:
    """Splats as Mip-Splatting (Yu et al. 2024, arXiv 2311.16493) draws them: blurred, with what each covers kept."""
    before, after = splats.log_scales.double(), torch.hypot(splats.log_scales.double().exp(), widths.double()).log()
    alphas = splats.opacity_logits.double().sigmoid() * (before - after).sum(dim=1).exp()
    return replace(splats, log_scales=after.float(), opacity_logits=alphas.logit(eps=1e-7).float())


def columns_in(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the columns of each element by its name; nothing for a header that `read_vertices` refuses.

    Raises:
        InputError: the header says that there is no vertex.
    """
    with path.open("rb") as file:
        try:
            elements = _read_header(file)[1]
        except ValueError:
            return {}
    if any(element.name == "vertex" and not element.count for element in elements):
        raise InputError(f"{path} is a PLY without any splat: its header says 'element vertex 0'")
    return {element.name: tuple(name for name, _ in element.properties) for element in elements}


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
NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "u4": "uint"}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
MAX_LINE = 65536
"""Bytes of a line of text."""
TEXT_BLOCK = 10_000
"""Lines of numbers that are read at once."""
MAX_LINES = 2048
"""Lines of a header; splats with harmonics of degree 4 have some hundred."""


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[tuple[str, str]]  # names and numpy types; the type of a list is empty


def read_vertices(path: Path, name: str = "vertex") -> np.ndarray:
    """Read the element of a name, all plain numbers: one row a vertex, one named column a property."""
    if not path.is_file():  # to open a pipe would wait for whoever writes into it
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            form, elements = _read_header(file)
            at = next((index for index, element in enumerate(elements) if element.name == name), None)
            if at is None:
                raise ValueError(f"it has no element {name}")
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
    problem = f"expected {count} lines of {len(properties)} numbers; the file is cut off"
    if not has_room:
        raise ValueError(problem)
    table = np.empty(count, properties)
    lines = (line for line in iter(lambda: file.readline(MAX_LINE), b"") if line.strip())
    lines = itertools.islice(lines, first, first + count)
    # In blocks: as Python's objects, the numbers of a million splats take gigabytes.
    for start in range(0, count, TEXT_BLOCK):
        rows = [line.split() for line in itertools.islice(lines, min(TEXT_BLOCK, count - start))]
        if len(rows) < min(TEXT_BLOCK, count - start) or any(len(row) != len(properties) for row in rows):
            raise ValueError(problem)
        numbers = np.array(rows, dtype=np.float64)
        for index, (name, _) in enumerate(properties):
            table[name][start : start + len(rows)] = numbers[:, index]
    return table


def write_vertices(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Write named columns as the only element of a binary PLY, atomically."""
    with write_atomically(path) as temporary:
        save_elements({"vertex": columns}, temporary)


def save_elements(elements: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Write elements of named columns (float32, float64, uint8 or uint32) as binary PLY, little endian."""
    header, tables = ["ply", "format binary_little_endian 1.0"], []
    for element, columns in elements.items():
        kinds = {name: column.dtype.str[1:] for name, column in columns.items()}
        table = np.empty(len(next(iter(columns.values()))), dtype=[(name, f"<{kind}") for name, kind in kinds.items()])
        for name, column in columns.items():
            table[name] = column
        header.append(f"element {element} {len(table)}")
        header += [f"property {NAMES[kind]} {name}" for name, kind in kinds.items()]
        tables.append(table)
    with path.open("wb") as file:
        file.write("\n".join([*header, "end_header\n"]).encode())
        for table in tables:
            file.write(table.tobytes())
