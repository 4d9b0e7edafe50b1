"""SPZ files of Niantic: fixed-point positions and bytes, packed with gzip (versions 2 and 3) or Zstandard (version 4).

The format: https://github.com/nianticlabs/spz#file-format. Axes are right, up, back there, and right, down, forward in
a PLY; files are turned to the axes of a PLY as by Niantic's own converters.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from restage.records import InputError
from restage.scenes.config import MAX_DEGREE
from restage.scenes.io.packing import (
    alphas_of,
    check_count,
    flip_axes,
    logits_of,
    smallest_three,
    splats_of,
    unit_rotations,
    whole_rotations,
)
from restage.scenes.splats import Splats

__all__ = ["read_spz", "write_spz"]

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")
"""Magic, version, number of splats, degree of the harmonics, fractional bits, flags, reserved or number of streams."""
HEADER_4 = struct.Struct("<4sIIBBBBI12x")
"""The same, and where the table of streams begins."""
WRITTEN_VERSION = 3
"""The newest version that all readers since 2025 take."""
NUM_REST = (0, 3, 8, 15, 24)
"""Spherical harmonics beyond the first, by degree."""
COLOR_SCALE = 0.15
SQRT_HALF = math.sqrt(0.5)
MAX_FRACTION = 20
POSITION_BITS = 23
MAX_EXTENSIONS = 2**20
"""Bytes that may follow the splats: extensions of other programs, which are passed over."""


def read_spz(path: Path) -> Splats:
    """Read an SPZ of version 2 to 4, also of harmonics of degree 4, which are cut to 3.

    Raises:
        ValueError: what is wrong with the file.
    """
    raw = path.read_bytes()
    if raw[:4] == MAGIC:
        header, parts = _streams(raw)
    else:
        header, parts = _parts_of_gzip(raw)
    _, version, count, degree, fraction, *_ = header
    positions, alphas, colors, scales, rotations = (part.reshape(count, -1) for part in parts[:5])
    low = positions.reshape(count, 3, 3).astype(np.int32)
    fixed = low[..., 0] | low[..., 1] << 8 | low[..., 2] << 16
    fixed = np.where(fixed & 0x800000, fixed - 0x1000000, fixed)
    kept = NUM_REST[min(degree, MAX_DEGREE)]
    # In float32, since harmonics are most of a file.
    rest = (parts[5].reshape(count, NUM_REST[degree], 3)[:, :kept] - np.float32(128)) / np.float32(128)
    colors = ((colors / 255.0 - 0.5) / COLOR_SCALE).astype(np.float32)
    splats = splats_of(
        fixed / 2.0**fraction,
        scales / 16.0 - 10.0,
        _wide_rotations(rotations) if version == 2 else _packed_rotations(rotations),
        logits_of(alphas[:, 0] / 255.0),
        np.concatenate([colors[:, None], rest], axis=1),
    )
    return flip_axes(splats, y=-1, z=-1)


def _check_header(header: tuple[Any, ...], num_bytes: int, versions: tuple[int, ...]) -> list[int]:
    """Return how many bytes each part of the file takes."""
    magic, version, count, degree, fraction, *_ = header
    if magic != MAGIC:
        raise ValueError("it does not start with 'NGSP'")
    if version not in versions:
        raise ValueError(f"expected version {' or '.join(map(str, versions))} of the format, got {version}")
    if degree >= len(NUM_REST) or fraction > POSITION_BITS:
        raise ValueError(f"its header says harmonics of degree {degree} and {fraction} fractional bits")
    check_count(count, num_bytes)
    return [9 * count, count, 3 * count, 3 * count, (3 if version == 2 else 4) * count, 3 * NUM_REST[degree] * count]


def _parts_of_gzip(raw: bytes) -> tuple[tuple[Any, ...], list[np.ndarray]]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        start = unpacker.decompress(raw, HEADER.size)
        if len(start) < HEADER.size:
            raise ValueError("the file is cut off")
        header = HEADER.unpack(start)
        sizes = _check_header(header, len(raw), (2, 3))
        content = unpacker.decompress(unpacker.unconsumed_tail, sum(sizes))
        # To its end, where gzip's checksum is compared; what would unpack to far more is never unpacked.
        unpacker.decompress(unpacker.unconsumed_tail, MAX_EXTENSIONS)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(content) < sum(sizes) or (not unpacker.eof and not unpacker.unconsumed_tail):
        raise ValueError("the file is cut off")
    if not unpacker.eof:
        raise ValueError("it unpacks to more than its header says")
    return header, np.split(np.frombuffer(content, np.uint8), np.cumsum(sizes)[:-1])


def _streams(raw: bytes) -> tuple[tuple[Any, ...], list[np.ndarray]]:
    """Parts of version 4, each a Zstandard stream of its own; empty ones are not written."""
    import pyarrow

    if len(raw) < HEADER_4.size:
        raise ValueError("the file is cut off")
    header = HEADER_4.unpack_from(raw)
    sizes = _check_header(header, len(raw), (4,))
    num_streams, table = header[-2:]
    start = table + 16 * num_streams
    if num_streams != sum(size > 0 for size in sizes) or not HEADER_4.size <= table <= start <= len(raw):
        raise ValueError(f"its header says {num_streams} streams from byte {table} on")
    codec = pyarrow.Codec("zstd")
    parts = []
    entries = iter([struct.unpack_from("<QQ", raw, table + 16 * index) for index in range(num_streams)])
    for size in sizes:
        packed_size, said = next(entries) if size else (0, 0)
        if said != size or packed_size > len(raw) - start:
            raise ValueError("a stream has another size than its header says; the file is cut off or damaged")
        packed = raw[start : start + packed_size]
        try:
            part = codec.decompress(packed, decompressed_size=size) if size else b""
        except OSError as error:  # what pyarrow raises for broken streams
            raise ValueError(str(error)) from None
        parts.append(np.frombuffer(part, np.uint8))
        start += packed_size
    return header, parts


def _wide_rotations(rotations: np.ndarray) -> np.ndarray:
    xyz = rotations / 127.5 - 1.0
    return whole_rotations(np.zeros(len(xyz), np.int64), xyz)


def _packed_rotations(rotations: np.ndarray) -> np.ndarray:
    """Quaternions wxyz of two bits for the largest component in xyzw, and a sign and nine bits for each other one."""
    words = rotations.copy().view("<u4")[:, 0]
    fields = np.stack([words >> 20, words >> 10, words], axis=1) & 0x3FF
    others = (fields & 0x1FF) * (SQRT_HALF / 0x1FF) * np.where(fields & 0x200, -1.0, 1.0)
    return np.roll(whole_rotations((words >> 30).astype(np.int64), others), 1, axis=1)


def write_spz(splats: Splats, path: Path) -> None:
    """Write an SPZ of version 3, with the bits that Niantic's writer gives harmonics by default (5, then 4)."""
    turned = flip_axes(splats, y=-1, z=-1)
    count = len(splats)
    means = turned.means.double().numpy()
    farthest = float(np.abs(means).max())
    if farthest >= 2.0**POSITION_BITS - 1:
        raise InputError(f"{path}: positions in SPZ are below {2**POSITION_BITS}, got {farthest:.4g}")
    # As fine as the farthest splat allows; Niantic's writer always takes 12 bits, which large worlds overflow.
    fraction = min(MAX_FRACTION, POSITION_BITS - max(0, math.ceil(math.log2(max(farthest, 1e-300) + 2**-20))))
    fixed = np.clip(np.rint(means * 2.0**fraction), 1 - 2**POSITION_BITS, 2**POSITION_BITS - 1).astype("<i4")
    largest, others = smallest_three(np.roll(unit_rotations(turned), -1, axis=1))
    fields = np.rint(np.abs(others) * (0x1FF / SQRT_HALF)).astype(np.uint32).clip(0, 0x1FF) | (others < 0) * 0x200
    words = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    buckets = np.where(np.arange(turned.sh.shape[1] - 1) < 3, 1 << 3, 1 << 4)[:, None]
    # Far beyond what bytes hold, so that nothing overflows and everything is cut the same.
    rest = np.rint(turned.sh[:, 1:].numpy().clip(-100, 100) * 128.0).astype(np.int32) + 128
    parts = [
        fixed.view(np.uint8).reshape(count, 3, 4)[..., :3],
        _bytes(alphas_of(turned) * 255.0),
        _bytes(turned.sh[:, 0].numpy() * (COLOR_SCALE * 255.0) + 127.5),
        _bytes((turned.log_scales.numpy() + 10.0) * 16.0),
        words.astype("<u4"),
        ((rest + buckets // 2) // buckets * buckets).clip(0, 255).astype(np.uint8),
    ]
    header = HEADER.pack(MAGIC, WRITTEN_VERSION, count, turned.degree, fraction, 0, 0)
    packer = zlib.compressobj(wbits=31)
    with path.open("wb") as file:
        for content in (header, *(np.ascontiguousarray(part).tobytes() for part in parts)):
            file.write(packer.compress(content))
        file.write(packer.flush())


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
