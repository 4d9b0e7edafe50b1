"""Finds pairs that are in the set more than once: by id, by the pixels of both pictures, or by their looks.

It works on short descriptions of all pairs (about 60 bytes each), not on pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt64

__all__ = ["Repeat", "find_near", "find_repeated"]

BAND_BITS = 32
"""Two hashes of 128 bits that differ in at most 3 bits agree in one of four bands of 32 bits: all such pairs of
pictures are found, and some that differ in more bits."""
MAX_BITS = 8
"""Number of differing bits, of 128, up to which pictures have the same layout. Among 969 different pairs of the
miniature the smallest number was 8, once (docs/log/2026-11-22-campaigns.md)."""
MAX_COLOUR_LEVELS = 6
"""Difference of mean colors, in levels of 255, up to which pictures have the same coloring, which the hashes ignore."""
MAX_RUN = 64
"""Number of pairs with a common band up to which all are compared with one another; beyond it, only neighbors."""


class Repeat(NamedTuple):
    """A row that repeats an earlier one."""

    row: int
    earlier: int
    num_bits: int
    """Number of bits in which the hashes differ; 0 for exact repeats."""


def find_repeated(keys: UInt64[np.ndarray, " n"]) -> Iterator[Repeat]:
    """Yield the rows whose key an earlier row has, in order."""
    order = np.argsort(keys, kind="stable")
    is_repeat = np.zeros(len(keys), bool)
    is_repeat[1:] = keys[order][1:] == keys[order][:-1]
    # A stable sort keeps equal keys in the order of their rows: the first of each run is the one that is repeated.
    first = order[np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(keys))))]
    rows = [Repeat(int(order[i]), int(first[i]), 0) for i in np.flatnonzero(is_repeat)]
    yield from sorted(rows)


def _runs(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield groups of at least two rows with equal values."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    starts, ends = np.r_[0, ends], np.r_[ends, len(order)]
    for run in np.flatnonzero(ends - starts > 1):
        yield order[starts[run] : ends[run]]


def _candidates(shapes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows (later, earlier) whose hashes have a band in common."""
    for half in range(2):
        for shift in (0, BAND_BITS):
            band = ((shapes[:, half] >> np.uint64(shift)) & np.uint64(2**BAND_BITS - 1)).astype(np.uint32)
            for run in _runs(band):
                reach = len(run) if len(run) <= MAX_RUN else 2
                for i in range(len(run)):
                    for j in range(i + 1, min(i + reach, len(run))):
                        yield int(run[j]), int(run[i])


def find_near(
    shapes: UInt64[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 24"], known: Sequence[Repeat] = ()
) -> list[Repeat]:
    """Return the rows that look like an earlier one, in order, each with the nearest that was found.

    Args:
        shapes: difference hashes of both pictures.
        colours: mean colors of the quarters of both pictures.
        known: exact repeats, which are not reported again.
    """
    skipped = {repeat.row for repeat in known}
    best: dict[int, Repeat] = {}
    for row, earlier in _candidates(shapes):
        if row in skipped or earlier in skipped:
            continue
        num_bits = sum(int(bits).bit_count() for bits in shapes[row] ^ shapes[earlier])
        furthest = int(np.abs(_levels(colours[row]) - _levels(colours[earlier])).max())
        if num_bits <= MAX_BITS and furthest <= MAX_COLOUR_LEVELS:
            repeat = Repeat(row, earlier, num_bits)
            best[row] = min(best.get(row, repeat), repeat, key=lambda found: (found.num_bits, found.earlier))
    return [best[row] for row in sorted(best)]


def _levels(colours: UInt8[np.ndarray, " 24"]) -> Int[np.ndarray, " 24"]:
    return colours.astype(np.int64)
