"""Numba kernels that say which splats are drawn in which tile, near to far: what `kernels.py` then blends.

Splats are shared out to threads in runs of the drawing order; each run counts its entries by tile, so that all know
where theirs begin. The result is that of one thread. Side of a tile and least alpha are arguments, since numba's cache
does not see changes of constants in other files. `no_type_check` keeps the test suite's run-time type checks out.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

__all__ = ["bin_splats", "order_by_depth"]

REACH_MARGIN = 2e-3
"""Added to where the log falloff, doubled, ends, so that rounding cuts off no pixel."""
DIGIT_BITS = 11
NUM_DIGITS = 2**DIGIT_BITS
NUM_PASSES = 3
"""Three times 11 bits hold the 31 of a positive float32."""
FEW_SPLATS = 2048
"""Fewer than this are not worth a thread of their own."""


@numba.njit(cache=True)
@no_type_check
def order_by_depth(depths, is_seen):
    """Indices of the seen splats, near to far, equal depths in their own order: a radix sort of the depths' bits."""
    # Positive floats sort like their bits, so that integers can be sorted instead, in three passes.
    bits = depths.view(np.uint32)
    histograms = np.zeros((NUM_PASSES, NUM_DIGITS), np.int64)
    count = 0
    for splat in range(len(depths)):
        if is_seen[splat]:
            count += 1
            for digit in range(NUM_PASSES):
                histograms[digit, (bits[splat] >> np.uint32(DIGIT_BITS * digit)) & np.uint32(NUM_DIGITS - 1)] += 1
    order = np.empty(count, np.int64)
    stop = 0
    for splat in range(len(depths)):
        if is_seen[splat]:
            order[stop] = splat
            stop += 1
    for digit in range(NUM_PASSES):
        # Each pass is stable, which is what makes sorting by the lowest digits first right.
        starts = np.cumsum(histograms[digit]) - histograms[digit]
        following = np.empty(count, np.int64)
        for splat in order:
            value = (bits[splat] >> np.uint32(DIGIT_BITS * digit)) & np.uint32(NUM_DIGITS - 1)
            following[starts[value]] = splat
            starts[value] += 1
        order = following
    return order


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _ellipse_of(row, least_alpha):
    """Where a splat is drawn: a u^2 + 2 b u v + c v^2 <= reach about its center; a, b, c, reach and largest u and v."""
    a, b, c = np.float64(row[2]), np.float64(row[3]), np.float64(row[4])
    reach = 2.0 * np.log(max(np.float64(row[5]) / least_alpha, 1.0)) + REACH_MARGIN
    # A needle's determinant may round to 0 or below, and then its box is as large as the image.
    by_determinant = reach / max(a * c - b * b, 1e-30)
    return a, b, c, reach, np.sqrt(c * by_determinant), np.sqrt(a * by_determinant)


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _across(a, b, c, reach, largest_u, largest_v, low, high):
    """Least and greatest u of the ellipse where v is in [low, high]; the least is greater where there is none."""
    # Beyond the ellipse's own extent the root below would be of a negative number.
    low, high = max(low, -largest_v), min(high, largest_v)
    if low > high:
        return 1.0, -1.0
    # The ellipse is widest at the v of its rightmost point, or as near to it as the band allows.
    rightmost = -b * largest_u / c
    at_right, at_left = min(max(rightmost, low), high), min(max(-rightmost, low), high)
    determinant = a * c - b * b
    right = (-b * at_right + np.sqrt(max(a * reach - determinant * at_right * at_right, 0.0))) / a
    left = (-b * at_left - np.sqrt(max(a * reach - determinant * at_left * at_left, 0.0))) / a
    return left, right


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _find_tiles(row, tiles_x, tiles_y, tile_side, least_alpha, tiles, spans, start):
    """Write the tiles that a splat is drawn in, with its first and one past its last pixel row there, from `start` on.

    Returns where the next splat's begin. Pixels count by their centers.
    """
    x, y = np.float64(row[0]), np.float64(row[1])
    a, b, c, reach, largest_u, largest_v = _ellipse_of(row, least_alpha)
    first_y = min(max(np.int64(np.floor((y - largest_v) / tile_side)), 0), tiles_y)
    stop_y = min(max(np.int64(np.floor((y + largest_v) / tile_side)) + 1, 0), tiles_y)
    for tile_y in range(first_y, stop_y):
        top = tile_y * tile_side + 0.5 - y
        left, right = _across(a, b, c, reach, largest_u, largest_v, top, top + tile_side - 1.0)
        if left > right:
            continue
        first_x = min(max(np.int64(np.floor((x + left) / tile_side)), 0), tiles_x)
        stop_x = min(max(np.int64(np.floor((x + right) / tile_side)) + 1, 0), tiles_x)
        for tile_x in range(first_x, stop_x):
            side = tile_x * tile_side + 0.5 - x
            # Rows cut exactly as well: long thin splats would otherwise touch many pixels that they never reach.
            upper, lower = _across(c, b, a, reach, largest_v, largest_u, side, side + tile_side - 1.0)
            first_row = max(np.int64(np.ceil(upper - top)), 0)
            stop_row = min(np.int64(np.floor(lower - top)) + 1, tile_side)
            if first_row < stop_row:
                tiles[start] = tile_y * tiles_x + tile_x
                spans[start, 0], spans[start, 1] = first_row, stop_row
                start += 1
    return start


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _count_tiles(row, tiles_x, tiles_y, tile_side, least_alpha):
    """Count the tiles of a splat's bounding box: at least as many as `_find_tiles` writes."""
    _, _, _, _, half_x, half_y = _ellipse_of(row, least_alpha)
    x, y = np.float64(row[0]), np.float64(row[1])
    columns = min(np.floor((x + half_x) / tile_side), tiles_x - 1.0) - max(np.floor((x - half_x) / tile_side), 0.0)
    rows = min(np.floor((y + half_y) / tile_side), tiles_y - 1.0) - max(np.floor((y - half_y) / tile_side), 0.0)
    return np.int64(max(columns + 1.0, 0.0)) * np.int64(max(rows + 1.0, 0.0))


@numba.njit(cache=True)
@no_type_check
def _run_starts(count, num_threads):
    """Where each thread's run of the drawing order starts, and the end of the last: as equal as can be."""
    # Runs of the drawing order, not single splats, so that the order within a tile survives the threads.
    num_runs = max(1, min(num_threads, count // FEW_SPLATS))
    starts = np.empty(num_runs + 1, np.int64)
    for run in range(num_runs + 1):
        starts[run] = run * count // num_runs
    return starts


@numba.njit(cache=True, parallel=True)
@no_type_check
def _find_entries(order, geometry, run_starts, tiles_x, tiles_y, tile_side, least_alpha):
    """Tile and pixel rows of each entry, run by run with gaps in between, and where those of each splat end.

    Returns:
        Tile of each entry, its first and one past its last row, where each run's entries start, where those of each
        position of the order end, number of entries of each run in each tile.
    """
    num_runs = len(run_starts) - 1
    bounds = np.zeros(num_runs + 1, np.int64)
    for run in numba.prange(num_runs):
        # Bounds first: threads can then write into one array, each into a part of its own.
        bound = 0
        for position in range(run_starts[run], run_starts[run + 1]):
            bound += _count_tiles(geometry[order[position]], tiles_x, tiles_y, tile_side, least_alpha)
        bounds[run + 1] = bound
    first_entries = np.cumsum(bounds)
    tiles = np.empty(first_entries[-1], np.int32)
    spans = np.empty((first_entries[-1], 2), np.uint8)
    stops = np.empty(len(order), np.int64)
    counts = np.zeros((num_runs, tiles_x * tiles_y), np.int64)
    for run in numba.prange(num_runs):
        stop = first_entries[run]
        for position in range(run_starts[run], run_starts[run + 1]):
            start = stop
            row = geometry[order[position]]
            stop = _find_tiles(row, tiles_x, tiles_y, tile_side, least_alpha, tiles, spans, start)
            stops[position] = stop
            for index in range(start, stop):
                counts[run, tiles[index]] += 1
    return tiles, spans, first_entries, stops, counts


@numba.njit(cache=True, parallel=True)
@no_type_check
def bin_splats(order, geometry, width, height, tile_side, least_alpha, num_threads):
    """Sort splats into tiles.

    `order` has the drawn splats, near to far; `geometry` is that of `project_forward`; a tile has at most 255 pixels a
    side; a splat is not drawn where its alpha is below `least_alpha`. The number of threads changes no result.

    Returns:
        Start of each tile's entries ("tiles + 1"), splat of each entry, first and one past the last pixel row of its
        tile that it reaches ("entries 2"), start of each splat's entries in the next array ("n + 1"), entries sorted
        by splat.
    """
    tiles_x = (width + tile_side - 1) // tile_side
    tiles_y = (height + tile_side - 1) // tile_side
    num_tiles = tiles_x * tiles_y
    run_starts = _run_starts(len(order), num_threads)
    num_runs = len(run_starts) - 1
    tiles, spans, first_entries, stops, counts = _find_entries(
        order, geometry, run_starts, tiles_x, tiles_y, tile_side, least_alpha
    )
    tile_starts = np.zeros(num_tiles + 1, np.int64)
    next_entries = np.empty((num_runs, num_tiles), np.int64)
    # Tile by tile and run by run, the counts say where each run's entries of a tile go: a counting sort.
    for tile in range(num_tiles):
        total = tile_starts[tile]
        for run in range(num_runs):
            next_entries[run, tile] = total
            total += counts[run, tile]
        tile_starts[tile + 1] = total
    splat_starts = np.zeros(len(geometry) + 1, np.int64)
    for run in range(num_runs):
        # A second index, by splat, lets the backward pass sum a splat's gradients without sharing a sum.
        start = first_entries[run]
        for position in range(run_starts[run], run_starts[run + 1]):
            splat_starts[order[position] + 1] = stops[position] - start
            start = stops[position]
    for splat in range(len(geometry)):
        splat_starts[splat + 1] += splat_starts[splat]
    entry_splats = np.empty(tile_starts[-1], np.int32)
    entry_rows = np.empty((tile_starts[-1], 2), np.uint8)
    splat_entries = np.empty(tile_starts[-1], np.int32)
    for run in numba.prange(num_runs):
        index = first_entries[run]
        for position in range(run_starts[run], run_starts[run + 1]):
            splat = order[position]
            next_of_splat = splat_starts[splat]
            while index < stops[position]:
                entry = next_entries[run, tiles[index]]
                next_entries[run, tiles[index]] = entry + 1
                entry_splats[entry] = splat
                entry_rows[entry, 0], entry_rows[entry, 1] = spans[index, 0], spans[index, 1]
                splat_entries[next_of_splat] = entry
                next_of_splat += 1
                index += 1
    return tile_starts, entry_splats, entry_rows, splat_starts, splat_entries
