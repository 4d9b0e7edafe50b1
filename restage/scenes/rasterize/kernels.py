"""Numba kernels of `numba_cpu`: bin splats into tiles, blend each tile front to back, and the way back.

Every loop over the pixels of a tile runs over flat arrays of at most 256 floats, which LLVM turns into vector code.
Each (tile, splat) pair is an entry; the backward pass writes the gradient of an entry to its own row, and a second
pass sums the rows of each splat in a fixed order: no atomics, and the result does not depend on the threads.
`no_type_check` keeps the test suite's run-time type checks out of compiled functions.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

from restage.scenes.rasterize.blending import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE

__all__ = ["NUM_GEOMETRY", "TILE", "bin_splats", "blend_backward", "blend_forward", "sum_entries"]

TILE = 16
"""Side of a tile in pixels."""
NUM_GEOMETRY = 6
"""Gradient columns before those of the channels: x, y, conic xx, xy, yy, opacity."""
CHECK_EVERY = 8
"""After how many splats a tile looks whether all its pixels are opaque."""

FLAGS = {"reassoc", "contract", "nsz", "arcp"}
CEILING = np.float32(MAX_ALPHA)
FLOOR = np.float32(MIN_ALPHA)
OPAQUE = np.float32(MIN_TRANSMITTANCE)
ONE = np.float32(1.0)
ZERO = np.float32(0.0)
HALF = np.float32(0.5)
EIGHTH = np.float32(0.125)
LEAST_POWER = np.float32(-5.6)
"""exp(-5.6) < MIN_ALPHA: nothing below is drawn."""
E0 = np.float32(0.9999999985575443)
E1 = np.float32(0.9999997966775434)
E2 = np.float32(0.49999531014284904)
E3 = np.float32(0.1666259506814261)
E4 = np.float32(0.0414972511635583)
E5 = np.float32(0.007966789717962684)
E6 = np.float32(0.0009830236222696746)


@numba.njit(cache=True, inline="always")
@no_type_check
def _exp(power):
    """Exponential on [-5.6, 0]: Chebyshev fit of degree 6 on an eighth of the range (3e-9), squared three times."""
    x = max(power, LEAST_POWER) * EIGHTH
    y = E0 + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * (E5 + x * E6)))))
    y = y * y
    y = y * y
    return y * y


@numba.njit(cache=True)
@no_type_check
def bin_splats(order, centers, extents, width, height):
    """Sort splats into tiles.

    Args:
        order: Indices of the drawn splats, near to far.
        centers: Centres in pixels, "n 2".
        extents: Half width and half height of what is drawn of a splat in pixels, "n 2".
        width: Image width.
        height: Image height.

    Returns:
        Start of each tile's entries ("tiles + 1"), splat of each entry, start of each splat's entries in the next
        array ("n + 1"), entries sorted by splat.
    """
    tiles_x = (width + TILE - 1) // TILE
    tiles_y = (height + TILE - 1) // TILE
    num_splats = centers.shape[0]
    rectangles = np.zeros((num_splats, 4), np.int64)
    tile_starts = np.zeros(tiles_x * tiles_y + 1, np.int64)
    splat_starts = np.zeros(num_splats + 1, np.int64)
    for splat in order:
        x, y, half_x, half_y = centers[splat, 0], centers[splat, 1], extents[splat, 0], extents[splat, 1]
        x0 = min(max(np.int64(np.floor((x - half_x) / TILE)), 0), tiles_x)
        x1 = min(max(np.int64(np.floor((x + half_x) / TILE)) + 1, 0), tiles_x)
        y0 = min(max(np.int64(np.floor((y - half_y) / TILE)), 0), tiles_y)
        y1 = min(max(np.int64(np.floor((y + half_y) / TILE)) + 1, 0), tiles_y)
        rectangles[splat, 0], rectangles[splat, 1], rectangles[splat, 2], rectangles[splat, 3] = x0, x1, y0, y1
        splat_starts[splat + 1] = max(x1 - x0, 0) * max(y1 - y0, 0)
        for tile_y in range(y0, y1):
            for tile_x in range(x0, x1):
                tile_starts[tile_y * tiles_x + tile_x + 1] += 1
    for tile in range(tiles_x * tiles_y):
        tile_starts[tile + 1] += tile_starts[tile]
    for splat in range(num_splats):
        splat_starts[splat + 1] += splat_starts[splat]
    next_of_tile = tile_starts[:-1].copy()
    entry_splats = np.empty(tile_starts[-1], np.int64)
    splat_entries = np.empty(tile_starts[-1], np.int64)
    for splat in order:
        next_of_splat = splat_starts[splat]
        for tile_y in range(rectangles[splat, 2], rectangles[splat, 3]):
            for tile_x in range(rectangles[splat, 0], rectangles[splat, 1]):
                tile = tile_y * tiles_x + tile_x
                entry = next_of_tile[tile]
                entry_splats[entry] = splat
                splat_entries[next_of_splat] = entry
                next_of_tile[tile] = entry + 1
                next_of_splat += 1
    return tile_starts, entry_splats, splat_starts, splat_entries


@numba.njit(cache=True, inline="always")
@no_type_check
def _pixel_grid(tile_x, tile_y):
    """Pixel centres of a tile, flat, row by row."""
    grid_x = np.empty(TILE * TILE, np.float32)
    grid_y = np.empty(TILE * TILE, np.float32)
    for row in range(TILE):
        for column in range(TILE):
            grid_x[row * TILE + column] = np.float32(tile_x * TILE + column) + HALF
            grid_y[row * TILE + column] = np.float32(tile_y * TILE + row) + HALF
    return grid_x, grid_y


@numba.njit(cache=True, inline="always")
@no_type_check
def _pixel_span(center_y, half_y, tile_y):
    """First and one past the last flat pixel of the tile's rows that a splat reaches."""
    top = np.int64(np.floor(center_y - half_y)) - tile_y * TILE
    bottom = np.int64(np.floor(center_y + half_y)) + 1 - tile_y * TILE
    return min(max(top, 0), TILE) * TILE, min(max(bottom, 0), TILE) * TILE


@numba.njit(cache=True, inline="always")
@no_type_check
def _interleaved(index, num_tiles, num_threads):
    """Spread neighbouring tiles over the threads, whose shares are contiguous in `index`."""
    share = (num_tiles + num_threads - 1) // num_threads
    return (index % share) * num_threads + index // share


@numba.njit(cache=True, fastmath=FLAGS, error_model="numpy")
@no_type_check
def _weigh_tile(grid_x, grid_y, splat, last_entry, transmittance, weights, last):
    """Update transmittance and last entry of the given pixels by one splat, and give its weights there.

    `last` is -1 - entry once a pixel is opaque.
    """
    x, y, xx, xy, yy, opacity = splat
    for pixel in range(len(weights)):
        offset_x = grid_x[pixel] - x
        offset_y = grid_y[pixel] - y
        power = -(HALF * (xx * offset_x * offset_x + yy * offset_y * offset_y) + xy * offset_x * offset_y)
        alpha = min(CEILING, opacity * _exp(power))
        before = transmittance[pixel]
        after = before * (ONE - alpha)
        is_open = (alpha >= FLOOR) & (last[pixel] >= 0)
        is_drawn = is_open & (after >= OPAQUE)
        weights[pixel] = before * alpha if is_drawn else ZERO
        transmittance[pixel] = after if is_drawn else before
        latest = last_entry if is_drawn else last[pixel]
        last[pixel] = -latest - np.int32(1) if is_open & (after < OPAQUE) else latest


@numba.njit(cache=True, fastmath=FLAGS, error_model="numpy")
@no_type_check
def _add_scaled(total, weights, scale):
    for pixel in range(len(weights)):
        total[pixel] += weights[pixel] * scale


@numba.njit(cache=True)
@no_type_check
def _is_opaque(last):
    largest = np.int32(-1)
    for pixel in range(len(last)):
        largest = max(largest, last[pixel])
    return largest < 0


@numba.njit(cache=True, parallel=True)
@no_type_check
def blend_forward(tile_starts, entry_splats, geometry, values, half_heights, width, height, num_threads):
    """Blend all tiles.

    Args:
        tile_starts: From `bin_splats`.
        entry_splats: From `bin_splats`.
        geometry: x, y, conic xx, xy, yy, opacity of each splat, "n 6" float32.
        values: Channels of each splat, "n c" float32.
        half_heights: Half height of what is drawn of each splat, in pixels.
        width: Image width.
        height: Image height.
        num_threads: Over how many threads the tiles are spread; changes no result.

    Returns:
        Channels "c h w", transmittance that is left "h w", and for the way back, "h w" int32, how many entries of its
        tile a pixel went through up to the last one drawn.
    """
    tiles_x = (width + TILE - 1) // TILE
    num_tiles = len(tile_starts) - 1
    num_channels = values.shape[1]
    blended = np.zeros((num_channels, height, width), np.float32)
    left = np.ones((height, width), np.float32)
    counts = np.zeros((height, width), np.int32)
    share = (num_tiles + num_threads - 1) // num_threads
    for index in numba.prange(share * num_threads):
        tile = _interleaved(index, num_tiles, num_threads)
        if tile < num_tiles:
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            grid_x, grid_y = _pixel_grid(tile_x, tile_y)
            transmittance = np.ones(TILE * TILE, np.float32)
            weights = np.empty(TILE * TILE, np.float32)
            last = np.zeros(TILE * TILE, np.int32)
            sums = np.zeros((num_channels, TILE * TILE), np.float32)
            first = tile_starts[tile]
            for entry in range(first, tile_starts[tile + 1]):
                splat = entry_splats[entry]
                row = geometry[splat]
                start, stop = _pixel_span(row[1], half_heights[splat], tile_y)
                parameters = (row[0], row[1], row[2], row[3], row[4], row[5])
                _weigh_tile(
                    grid_x[start:stop],
                    grid_y[start:stop],
                    parameters,
                    np.int32(entry - first + 1),
                    transmittance[start:stop],
                    weights[start:stop],
                    last[start:stop],
                )
                for channel in range(num_channels):
                    _add_scaled(sums[channel, start:stop], weights[start:stop], values[splat, channel])
                if (entry - first) % CHECK_EVERY == CHECK_EVERY - 1 and _is_opaque(last):
                    break
            rows = min(TILE, height - tile_y * TILE)
            columns = min(TILE, width - tile_x * TILE)
            for row_index in range(rows):
                for column in range(columns):
                    pixel = row_index * TILE + column
                    y, x = tile_y * TILE + row_index, tile_x * TILE + column
                    left[y, x] = transmittance[pixel]
                    counts[y, x] = last[pixel] if last[pixel] >= 0 else -last[pixel] - 1
                    for channel in range(num_channels):
                        blended[channel, y, x] = sums[channel, pixel]
    return blended, left, counts


@numba.njit(cache=True, fastmath=FLAGS, error_model="numpy")
@no_type_check
def _dot_channels(products, gradients, start, stop, values):
    """Per pixel: sum over channels of the gradient of the image times the splat's value."""
    for pixel in range(stop - start):
        products[pixel] = ZERO
    for channel in range(len(values)):
        _add_scaled(products[: stop - start], gradients[channel, start:stop], values[channel])


@numba.njit(cache=True, fastmath=FLAGS, error_model="numpy")
@no_type_check
def _unweigh_tile(grid_x, grid_y, splat, entry, transmittance, behind, products, weights, counts, out):
    """Take one splat off the given pixels again, and sum its gradients over them into out[:6]."""
    x, y, xx, xy, yy, opacity = splat
    sum_x, sum_y, sum_xx, sum_xy, sum_yy, sum_opacity = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for pixel in range(len(weights)):
        offset_x = grid_x[pixel] - x
        offset_y = grid_y[pixel] - y
        power = -(HALF * (xx * offset_x * offset_x + yy * offset_y * offset_y) + xy * offset_x * offset_y)
        falloff = _exp(power)
        uncapped = opacity * falloff
        alpha = min(CEILING, uncapped)
        is_drawn = (alpha >= FLOOR) & (entry <= counts[pixel])
        alpha = alpha if is_drawn else ZERO
        after = transmittance[pixel]
        inverse = ONE / (ONE - alpha)
        before = after * inverse
        weight = before * alpha
        by_alpha = before * products[pixel] - behind[pixel] * inverse
        by_alpha = by_alpha if is_drawn & (uncapped <= CEILING) else ZERO
        weights[pixel] = weight
        transmittance[pixel] = before
        behind[pixel] += weight * products[pixel]
        by_power = by_alpha * alpha
        sum_opacity += by_alpha * falloff
        sum_x += by_power * offset_x
        sum_y += by_power * offset_y
        sum_xx += by_power * offset_x * offset_x
        sum_xy += by_power * offset_x * offset_y
        sum_yy += by_power * offset_y * offset_y
    out[0] = xx * sum_x + xy * sum_y
    out[1] = yy * sum_y + xy * sum_x
    out[2] = -HALF * sum_xx
    out[3] = -sum_xy
    out[4] = -HALF * sum_yy
    out[5] = sum_opacity


@numba.njit(cache=True, fastmath=FLAGS, error_model="numpy")
@no_type_check
def _dot(first, second):
    total = ZERO
    for pixel in range(len(first)):
        total += first[pixel] * second[pixel]
    return total


@numba.njit(cache=True, parallel=True)
@no_type_check
def blend_backward(
    tile_starts, entry_splats, geometry, values, half_heights, left, counts, by_blended, by_left, num_threads
):
    """Gradient of each entry, "entries (6 + c)": columns of `geometry`, then of `values`.

    Arguments are those of `blend_forward` and its results; `by_blended` "c h w" and `by_left` "h w" are the
    gradients of the channels and of the transmittance that is left.
    """
    num_channels, height, width = by_blended.shape
    tiles_x = (width + TILE - 1) // TILE
    num_tiles = len(tile_starts) - 1
    rows_out = np.zeros((len(entry_splats), NUM_GEOMETRY + num_channels), np.float32)
    share = (num_tiles + num_threads - 1) // num_threads
    for index in numba.prange(share * num_threads):
        tile = _interleaved(index, num_tiles, num_threads)
        if tile < num_tiles:
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            grid_x, grid_y = _pixel_grid(tile_x, tile_y)
            transmittance = np.ones(TILE * TILE, np.float32)
            behind = np.zeros(TILE * TILE, np.float32)
            products = np.zeros(TILE * TILE, np.float32)
            weights = np.empty(TILE * TILE, np.float32)
            tile_counts = np.zeros(TILE * TILE, np.int32)
            gradients = np.zeros((num_channels, TILE * TILE), np.float32)
            deepest = 0
            for row_index in range(min(TILE, height - tile_y * TILE)):
                for column in range(min(TILE, width - tile_x * TILE)):
                    pixel = row_index * TILE + column
                    y, x = tile_y * TILE + row_index, tile_x * TILE + column
                    transmittance[pixel] = left[y, x]
                    behind[pixel] = left[y, x] * by_left[y, x]
                    tile_counts[pixel] = counts[y, x]
                    deepest = max(deepest, counts[y, x])
                    for channel in range(num_channels):
                        gradients[channel, pixel] = by_blended[channel, y, x]
            for step in range(deepest):
                entry = tile_starts[tile] + deepest - 1 - step
                splat = entry_splats[entry]
                row = geometry[splat]
                start, stop = _pixel_span(row[1], half_heights[splat], tile_y)
                _dot_channels(products, gradients, start, stop, values[splat])
                parameters = (row[0], row[1], row[2], row[3], row[4], row[5])
                _unweigh_tile(
                    grid_x[start:stop],
                    grid_y[start:stop],
                    parameters,
                    np.int32(deepest - step),
                    transmittance[start:stop],
                    behind[start:stop],
                    products[: stop - start],
                    weights[start:stop],
                    tile_counts[start:stop],
                    rows_out[entry],
                )
                for channel in range(num_channels):
                    rows_out[entry, NUM_GEOMETRY + channel] = _dot(weights[start:stop], gradients[channel, start:stop])
    return rows_out


@numba.njit(cache=True, parallel=True)
@no_type_check
def sum_entries(splat_starts, splat_entries, rows):
    """Sum the gradient rows of each splat's entries, in the order of the entries."""
    sums = np.zeros((len(splat_starts) - 1, rows.shape[1]), np.float32)
    for splat in numba.prange(len(splat_starts) - 1):
        for position in range(splat_starts[splat], splat_starts[splat + 1]):
            for column in range(rows.shape[1]):
                sums[splat, column] += rows[splat_entries[position], column]
    return sums
