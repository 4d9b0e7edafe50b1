"""The table of vertices in a PLY file, text or binary of either byte order, as a numpy array with named columns.

`ply.py` makes splats and points of it. The header is bounded and the count is checked against the file's length before
anything is allocated, since such files come from anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from restage.records import InputError, write_atomically

__all__ = ["read_vertices", "write_vertices"]

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
    properties: list[tuple[str, str]]
    """Names and numpy types; the type of a list is empty."""


class _Broken(Exception):
    """What is wrong with a file, in words."""


def read_vertices(path: Path) -> np.ndarray:
    """Read the element `vertex`: one row a vertex, one named column a property.

    Raises:
        InputError: no such file, not a PLY, cut off, or without vertices of plain numbers.
    """
    if not path.is_file():  # to open a pipe would wait for whoever writes into it
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            form, elements = _read_header(file)
            at = next((index for index, element in enumerate(elements) if element.name == "vertex"), None)
            if at is None:
                raise _Broken("it has no element vertex")
            if not elements[at].properties:
                raise _Broken("its vertices have no properties")
            if any(not kind for element in elements[: at + 1] for _, kind in element.properties):
                raise _Broken("it has lists up to its vertices; expected one number a property")
            read = _read_text if form == "ascii" else _read_binary
            return read(file, elements[: at + 1], BYTE_ORDERS[form])
    except (_Broken, ValueError, OSError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable as a PLY file with vertices: {reason[:200]}") from None


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    if file.readline(MAX_LINE).rstrip() != b"ply":
        raise _Broken("it does not start with 'ply'")
    form, elements = "", []
    for _ in range(MAX_LINES):
        line = file.readline(MAX_LINE)
        words = line.decode("latin-1").split()
        if not line.endswith(b"\n"):
            raise _Broken("its header does not end, or has an overlong line")
        if words == ["end_header"]:
            if form not in BYTE_ORDERS:
                raise _Broken(f"expected a format of {', '.join(BYTE_ORDERS)}, got {form[:40]!r}")
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
                raise _Broken(f"its header has the line {' '.join(words)[:80]!r}")
    raise _Broken(f"its header has more than {MAX_LINES} lines")


def _read_binary(file: BinaryIO, elements: list[_Element], order: str) -> np.ndarray:
    kinds = [np.dtype([(name, f"{order}{kind}") for name, kind in element.properties]) for element in elements]
    sizes = [element.count * kind.itemsize for element, kind in zip(elements, kinds, strict=True)]
    start = file.tell()
    length = file.seek(0, 2) - start
    if sum(sizes) > length:
        raise _Broken(f"expected {sum(sizes)} bytes of vertices, got {length}; the file is cut off")
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
        raise _Broken(f"expected {count} lines of {len(properties)} numbers; the file is cut off")
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
