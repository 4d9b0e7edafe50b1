"""The compressed PLY of PlayCanvas and SuperSplat: 16 bytes a splat, within bounds that 256 of them share.

The format: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply, "Compressed PLY".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from restage.scenes.io.packing import (
    alphas_of,
    fit_range,
    logits_of,
    morton_order,
    smallest_three,
    splats_of,
    unit_rotations,
    whole_rotations,
)
from restage.scenes.io.ply import columns_in, read_vertices, save_elements
from restage.scenes.splats import SH_C0, Splats

__all__ = ["is_compressed", "read_compressed_ply", "write_compressed_ply"]

CHUNK = 256
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
BOUNDED = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
WIDTHS = ((11, 10, 11), (11, 10, 11), (8, 8, 8))
"""Bits of each number, from the highest; those of colors are followed by 8 of opacity."""
MAX_LOG_SCALE = 20.0
NUM_REST = (0, 9, 24, 45)
HARMONIC_RANGE = 8.0
"""Harmonics are kept from minus to plus half of it."""
SQRT_HALF = np.sqrt(0.5)


def is_compressed(names: tuple[str, ...]) -> bool:
    """Whether these are the columns of compressed vertices."""
    return "packed_position" in names


def read_compressed_ply(path: Path) -> Splats:
    """Read a compressed PLY, with harmonics of degree 0 to 3.

    Raises:
        InputError: the file is cut off or has other columns.
        ValueError: what else is wrong with the file.
    """
    vertices, chunks = read_vertices(path), read_vertices(path, "chunk")
    missing = set(PACKED) - set(vertices.dtype.names or ())
    missing |= {f"{end}_{name}" for end in ("min", "max") for names in BOUNDED[:2] for name in names} - set(
        chunks.dtype.names or ()
    )
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    if any(vertices.dtype[name] != np.uint32 for name in PACKED):
        raise ValueError("expected packed numbers of type uint")
    if len(chunks) != -(-len(vertices) // CHUNK):
        raise ValueError(f"expected a chunk for every {CHUNK} of {len(vertices)} splats, got {len(chunks)}")
    own_chunk = np.arange(len(vertices)) // CHUNK
    values = []
    for column, names, widths in zip(("position", "scale", "color"), BOUNDED, WIDTHS, strict=True):
        words = vertices[f"packed_{column}"] if column != "color" else vertices["packed_color"] >> 8
        shares = _unpack(words, widths)
        if f"min_{names[0]}" in (chunks.dtype.names or ()):  # early files have no bounds for colors
            least, most = (np.stack([chunks[f"{end}_{n}"] for n in names], axis=1)[own_chunk] for end in ("min", "max"))
            shares = least * (1 - shares) + most * shares
        values.append(shares)
    words = vertices["packed_rotation"]
    others = (_unpack(words, (10, 10, 10)) - 0.5) / SQRT_HALF
    means, log_scales, colors = values
    sh = ((colors - 0.5) / SH_C0)[:, None].astype(np.float32)
    return splats_of(
        means,
        log_scales,
        whole_rotations((words >> 30).astype(np.int64), others),
        logits_of((vertices["packed_color"] & 0xFF) / 255.0),
        np.concatenate([sh, _read_rest(path, len(vertices))], axis=1),
    )


def _read_rest(path: Path, count: int) -> np.ndarray:
    """Spherical harmonics from degree 1 on, "n k 3"; the file has them channel by channel."""
    if "sh" not in columns_in(path):
        return np.empty((count, 0, 3))
    rows = read_vertices(path, "sh")
    names = [f"f_rest_{index}" for index in range(len(rows.dtype.names or ()))]
    if len(names) not in NUM_REST or set(names) != set(rows.dtype.names or ()):
        raise ValueError(f"expected 9, 24 or 45 columns f_rest_*, got {len(names)}")
    if len(rows) != count or any(rows.dtype[name] != np.uint8 for name in names):
        raise ValueError(f"expected bytes for {count} splats as harmonics, got {len(rows)} of {rows.dtype[0]}")
    levels = np.stack([rows[name] for name in names], axis=1)
    # The outermost levels stand for the ends of the range, all others for the middle of their step.
    shares = (np.arange(256) + 0.5) / 256
    shares[[0, 255]] = 0.0, 1.0
    values = ((shares - 0.5) * HARMONIC_RANGE).astype(np.float32)[levels]
    return values.reshape(count, 3, -1).transpose(0, 2, 1)


def _unpack(words: np.ndarray, widths: tuple[int, int, int]) -> np.ndarray:
    """Numbers from 0 to 1 of the lowest bits of each word, the first of them in the highest."""
    shares = np.empty((len(words), 3))
    shift = 0
    for column in (2, 1, 0):
        most = (1 << widths[column]) - 1
        shares[:, column] = ((words >> np.uint32(shift)) & np.uint32(most)) / most
        shift += widths[column]
    return shares


def _pack(shares: np.ndarray, widths: tuple[int, int, int]) -> np.ndarray:
    words = np.zeros(len(shares), np.uint32)
    for column, width in enumerate(widths):
        most = (1 << width) - 1
        level = np.floor(shares[:, column] * most + 0.5).clip(0, most).astype(np.uint32)
        words = words << np.uint32(width) | level
    return words


def write_compressed_ply(splats: Splats, path: Path) -> None:
    """Write a compressed PLY; splats are sorted along a space-filling curve, so that bounds of 256 are narrow."""
    splats = splats[morton_order(splats.means)]
    starts = np.arange(0, len(splats), CHUNK)
    own_chunk = np.arange(len(splats)) // CHUNK
    log_scales = splats.log_scales.numpy().clip(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    chunks: dict[str, np.ndarray] = {}
    words = []
    for names, widths, values in zip(
        BOUNDED, WIDTHS, (splats.means.numpy(), log_scales, 0.5 + SH_C0 * splats.sh[:, 0].numpy()), strict=True
    ):
        least, most = (reduce.reduceat(values, starts, axis=0) for reduce in (np.minimum, np.maximum))
        for end, bounds in (("min", least), ("max", most)):
            chunks |= {f"{end}_{name}": bounds[:, index].astype("<f4") for index, name in enumerate(names)}
        words.append(_pack(fit_range(values - least[own_chunk], (most - least)[own_chunk]), widths))
    largest, others = smallest_three(unit_rotations(splats))
    rotations = largest.astype(np.uint32) << 30 | _pack(others * SQRT_HALF + 0.5, (10, 10, 10))
    opacities = np.floor(alphas_of(splats) * 255 + 0.5).astype(np.uint32)
    columns = (words[0], rotations, words[1], words[2] << np.uint32(8) | opacities)
    elements = {"chunk": chunks, "vertex": dict(zip(PACKED, columns, strict=True))}
    if splats.degree:
        rest = splats.sh[:, 1:].numpy().transpose(0, 2, 1).reshape(len(splats), -1)
        levels = np.floor((rest / HARMONIC_RANGE + 0.5) * 256).clip(0, 255).astype(np.uint8)
        elements["sh"] = {f"f_rest_{index}": levels[:, index] for index in range(levels.shape[1])}
    save_elements(elements, path)
