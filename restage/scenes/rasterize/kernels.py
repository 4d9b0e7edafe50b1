"""Numba kernels of `numba_cpu`: blend the splats of each tile (`binning.py`) front to back, and the way back.

Every loop over the pixels of a tile runs over flat arrays of at most 256 floats, which LLVM turns into vector code.
No fast-math flag is set: with one LLVM rounds as it likes, and a kernel that was just compiled gives other bits than
the same kernel from numba's cache. Fused multiply-adds and sums over 16 lanes (`_dot`) are written out instead.
Each (tile, splat) pair is an entry; the backward pass writes the gradient of an entry to its own row, and a second
pass sums the rows of each splat in a fixed order: no sum is shared, and the result does not depend on the threads,
each of which takes the next tile when it is done with one.
Constants stand here since numba's cache does not see changes in other files. `no_type_check` keeps the test suite's
run-time type checks out of compiled functions.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["MAX_ALPHA", "MIN_ALPHA", "MIN_TRANSMITTANCE", "NUM_GEOMETRY", "TILE", "blend_backward", "blend_forward"]
__all__ += ["sum_entries"]

MAX_ALPHA = 0.99
MIN_ALPHA = 1.0 / 255.0
MIN_TRANSMITTANCE = 1e-4
TILE = 16
"""Side of a tile in pixels."""
AREA = TILE * TILE
NUM_GEOMETRY = 6
"""Gradient columns before those of the channels: x, y, conic xx, xy, yy, opacity."""
CHECK_EVERY = 8
"""After how many splats a tile looks whether all its pixels are opaque."""

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


@intrinsic
def _fma(typing_context: Any, first: Any, second: Any, third: Any) -> Any:
    """Compute first * second + third in one rounding, float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


LANES = ir.VectorType(ir.FloatType(), 16)


def _fold(builder: Any, lanes: Any) -> Any:
    """Sum of 16 lanes: the upper half is added to the lower, four times."""
    undefined = ir.Constant(lanes.type, ir.Undefined)
    for half in (8, 4, 2, 1):
        places = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(s, s + half))) for s in (0, half)]
        lanes = builder.fadd(*(builder.shuffle_vector(lanes, undefined, place) for place in places))
        undefined = ir.Constant(lanes.type, ir.Undefined)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


@intrinsic
def _dot(typing_context: Any, first: Any, second: Any) -> Any:
    """Dot product of two float32 arrays of equal length, a multiple of 16: in 16 lanes, folded at the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [context.make_array(t)(context, builder, a) for t, a in zip(signature.args, arguments, strict=True)]
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(LANES, [LANES] * 3), "llvm.fma.v16f32")
        total = cgutils.alloca_once_value(builder, ir.Constant(LANES, [0.0] * 16))
        sixteen = ir.Constant(arrays[0].nitems.type, 16)
        with cgutils.for_range(builder, builder.udiv(arrays[0].nitems, sixteen)) as loop:
            start = builder.mul(loop.index, sixteen)
            places = [builder.bitcast(builder.gep(a.data, [start]), LANES.as_pointer()) for a in arrays]
            rows = [builder.load(place, align=4) for place in places]
            builder.store(builder.call(fma, [*rows, builder.load(total)]), total)
        return _fold(builder, builder.load(total))

    return types.float32(first, second), generate


@intrinsic
def _take_next(typing_context: Any, counter: Any) -> Any:
    """Return element 0 of an int64 array and add 1 to it, as one operation among threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@numba.njit(cache=True, inline="always")
@no_type_check
def _exp(power):
    """Exponential on [-5.6, 0]: Chebyshev fit of degree 6 on an eighth of the range (3e-9), squared three times."""
    # On an eighth of the range a short polynomial suffices, and exp(x) is exp(x / 8) squared three times.
    x = max(power, LEAST_POWER) * EIGHTH
    y = _fma(x, _fma(x, _fma(x, _fma(x, _fma(x, _fma(x, E6, E5), E4), E3), E2), E1), E0)
    y = y * y
    y = y * y
    return y * y


@numba.njit(cache=True, inline="always")
@no_type_check
def _pixel_grid():
    """Pixel centers of a tile from its corner, flat, row by row."""
    grid_x = np.empty(AREA, np.float32)
    grid_y = np.empty(AREA, np.float32)
    for row in range(TILE):
        for column in range(TILE):
            grid_x[row * TILE + column] = np.float32(column) + HALF
            grid_y[row * TILE + column] = np.float32(row) + HALF
    return grid_x, grid_y


@numba.njit(cache=True, inline="always")
@no_type_check
def _place(row, tile_x, tile_y):
    """A splat's row of geometry with the center seen from the tile's corner."""
    x, y = row[0] - np.float32(tile_x * TILE), row[1] - np.float32(tile_y * TILE)
    return (x, y, row[2], row[3], row[4], row[5])


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _weigh_tile(grid_x, grid_y, splat, number, transmittance, weights, last):
    """Update transmittance and last entry of the given pixels by one splat, and give its weights there.

    `last` is the number of the last entry drawn at a pixel, and -1 - number once the pixel is opaque.
    """
    x, y, xx, xy, yy, opacity = splat
    for pixel in range(len(weights)):
        offset_x = grid_x[pixel] - x
        offset_y = grid_y[pixel] - y
        power = _fma(offset_x, _fma(offset_x, -HALF * xx, -xy * offset_y), -HALF * yy * offset_y * offset_y)
        # Capped, since 1 - alpha is divided by on the way back.
        alpha = min(CEILING, opacity * _exp(power))
        before = transmittance[pixel]
        after = before * (ONE - alpha)
        # Choices instead of branches: LLVM makes vector code of the loop only so.
        is_open = (alpha >= FLOOR) & (last[pixel] >= 0)
        is_drawn = is_open & (after >= OPAQUE)
        weights[pixel] = before * alpha if is_drawn else ZERO
        transmittance[pixel] = after if is_drawn else before
        latest = number if is_drawn else last[pixel]
        # The sign says that the pixel is opaque, the number after which entry: one array for both.
        last[pixel] = -latest - np.int32(1) if is_open & (after < OPAQUE) else latest


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _add_scaled(total, weights, scale):
    for pixel in range(len(weights)):
        total[pixel] = _fma(weights[pixel], scale, total[pixel])


@numba.njit(cache=True)
@no_type_check
def _is_opaque(last):
    largest = np.int32(-1)
    for pixel in range(AREA):
        largest = max(largest, last[pixel])
    return largest < 0


@numba.njit(cache=True, parallel=True)
@no_type_check
def blend_forward(tile_starts, entry_splats, entry_rows, geometry, values, width, height, num_threads):
    """Blend all tiles.

    `geometry` is x, y, conic xx, xy, yy and opacity of each splat, "n 6" float32; `values` its channels, "n c" float32.
    The number of threads changes no result.

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
    next_tile = np.zeros(1, np.int64)
    for _ in numba.prange(num_threads):
        tile = _take_next(next_tile)
        while tile < num_tiles:
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            grid_x, grid_y = _pixel_grid()
            transmittance = np.ones(AREA, np.float32)
            last = np.zeros(AREA, np.int32)
            weights = np.empty(AREA, np.float32)
            sums = np.zeros((num_channels, AREA), np.float32)
            first = tile_starts[tile]
            for entry in range(first, tile_starts[tile + 1]):
                splat = entry_splats[entry]
                row = geometry[splat]
                start, stop = np.int64(entry_rows[entry, 0]) * TILE, np.int64(entry_rows[entry, 1]) * TILE
                _weigh_tile(
                    grid_x[start:stop],
                    grid_y[start:stop],
                    _place(row, tile_x, tile_y),
                    np.int32(entry - first + 1),
                    transmittance[start:stop],
                    weights[start:stop],
                    last[start:stop],
                )
                for channel in range(num_channels):
                    _add_scaled(sums[channel, start:stop], weights[start:stop], values[splat, channel])
                # Looking costs as much as a splat, so not after every one.
                if (entry - first) % CHECK_EVERY == CHECK_EVERY - 1 and _is_opaque(last):
                    break
            for row_index in range(min(TILE, height - tile_y * TILE)):
                for column in range(min(TILE, width - tile_x * TILE)):
                    pixel = row_index * TILE + column
                    y, x = tile_y * TILE + row_index, tile_x * TILE + column
                    left[y, x] = transmittance[pixel]
                    counts[y, x] = last[pixel] if last[pixel] >= 0 else -last[pixel] - 1
                    for channel in range(num_channels):
                        blended[channel, y, x] = sums[channel, pixel]
            tile = _take_next(next_tile)
    return blended, left, counts


@numba.njit(cache=True, error_model="numpy")
@no_type_check
def _unweigh_tile(grid_x, grid_y, splat, number, transmittance, behind, counts, products, weights, by_power):
    """Take one splat off the given pixels again.

    `transmittance` is that after the splat, and before it when this returns; `behind` is what lies behind the splat
    times the gradient of the image, then with the splat; `counts` has the number of the last entry drawn, `products`
    the splat's values times the gradient. Filled are `weights` and `by_power`: the gradient of the exponent, alone and
    times the offsets in x and y.
    """
    x, y, xx, xy, yy, opacity = splat
    plain, times_x, times_y = by_power
    for pixel in range(len(weights)):
        offset_x = grid_x[pixel] - x
        offset_y = grid_y[pixel] - y
        power = _fma(offset_x, _fma(offset_x, -HALF * xx, -xy * offset_y), -HALF * yy * offset_y * offset_y)
        uncapped = opacity * _exp(power)
        alpha = min(CEILING, uncapped)
        is_drawn = (alpha >= FLOOR) & (number <= counts[pixel])
        alpha = alpha if is_drawn else ZERO
        # Transmittance is taken back splat by splat: keeping it for every entry would take much more memory.
        inverse = ONE / (ONE - alpha)
        before = transmittance[pixel] * inverse
        weight = before * alpha
        product = products[pixel]
        gradient = (before * product - behind[pixel] * inverse) * alpha
        # Where alpha was capped, the splat's parameters did not matter.
        gradient = gradient if uncapped <= CEILING else ZERO
        weights[pixel] = weight
        transmittance[pixel] = before
        behind[pixel] = _fma(weight, product, behind[pixel])
        plain[pixel] = gradient
        times_x[pixel] = gradient * offset_x
        times_y[pixel] = gradient * offset_y


@numba.njit(cache=True, inline="always")
@no_type_check
def _write_geometry(grid_x, grid_y, ones, splat, by_power, out):
    """Sum the gradient of the exponent over the pixels into that of x, y, conic xx, xy, yy and opacity."""
    x, y, xx, xy, yy, opacity = splat
    plain, times_x, times_y = by_power
    # Moments of the gradient over the pixels are all that is needed: x, y and conic enter the exponent as a quadratic.
    sum_x, sum_y = _dot(times_x, ones), _dot(times_y, ones)
    out[0] = xx * sum_x + xy * sum_y
    out[1] = yy * sum_y + xy * sum_x
    out[2] = -HALF * (_dot(times_x, grid_x) - x * sum_x)
    out[3] = -(_dot(times_x, grid_y) - y * sum_x)
    out[4] = -HALF * (_dot(times_y, grid_y) - y * sum_y)
    out[5] = _dot(plain, ones) / opacity


@numba.njit(cache=True, parallel=True)
@no_type_check
def blend_backward(
    tile_starts, entry_splats, entry_rows, geometry, values, left, counts, by_blended, by_left, num_threads
):
    """Gradient of each entry, "entries (6 + c)": columns of `geometry`, then of `values`.

    Arguments are those of `blend_forward` and its results; `by_blended` "c h w" and `by_left` "h w" are the
    gradients of the channels and of the transmittance that is left.
    """
    num_channels, height, width = by_blended.shape
    tiles_x = (width + TILE - 1) // TILE
    num_tiles = len(tile_starts) - 1
    rows_out = np.zeros((len(entry_splats), NUM_GEOMETRY + num_channels), np.float32)
    next_tile = np.zeros(1, np.int64)
    for _ in numba.prange(num_threads):
        tile = _take_next(next_tile)
        while tile < num_tiles:
            tile_x, tile_y = tile % tiles_x, tile // tiles_x
            grid_x, grid_y = _pixel_grid()
            ones = np.ones(AREA, np.float32)
            transmittance = np.ones(AREA, np.float32)
            behind = np.zeros(AREA, np.float32)
            tile_counts = np.zeros(AREA, np.int32)
            gradients = np.zeros((num_channels, AREA), np.float32)
            products = np.empty(AREA, np.float32)
            weights = np.empty(AREA, np.float32)
            powers = np.empty((3, AREA), np.float32)
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
            # From the last entry that any pixel drew, back to front: what lies behind is then known.
            for step in range(deepest):
                entry = tile_starts[tile] + deepest - 1 - step
                splat = entry_splats[entry]
                row = geometry[splat]
                start, stop = np.int64(entry_rows[entry, 0]) * TILE, np.int64(entry_rows[entry, 1]) * TILE
                placed = _place(row, tile_x, tile_y)
                by_power = (powers[0, start:stop], powers[1, start:stop], powers[2, start:stop])
                products[start:stop] = ZERO
                for channel in range(num_channels):
                    _add_scaled(products[start:stop], gradients[channel, start:stop], values[splat, channel])
                _unweigh_tile(
                    grid_x[start:stop],
                    grid_y[start:stop],
                    placed,
                    np.int32(deepest - step),
                    transmittance[start:stop],
                    behind[start:stop],
                    tile_counts[start:stop],
                    products[start:stop],
                    weights[start:stop],
                    by_power,
                )
                _write_geometry(grid_x[start:stop], grid_y[start:stop], ones, placed, by_power, rows_out[entry])
                for channel in range(num_channels):
                    rows_out[entry, NUM_GEOMETRY + channel] = _dot(weights[start:stop], gradients[channel, start:stop])
            tile = _take_next(next_tile)
    return rows_out


@numba.njit(cache=True, parallel=True)
@no_type_check
def sum_entries(splat_starts, splat_entries, rows):
    """Sum the gradient rows of each splat's entries, in the order of the entries: geometry "n 6", values "n c"."""
    count, num_channels = len(splat_starts) - 1, rows.shape[1] - NUM_GEOMETRY
    by_geometry = np.zeros((count, NUM_GEOMETRY), np.float32)
    by_values = np.zeros((count, num_channels), np.float32)
    for splat in numba.prange(count):
        for position in range(splat_starts[splat], splat_starts[splat + 1]):
            row = rows[splat_entries[position]]
            for column in range(NUM_GEOMETRY):
                by_geometry[splat, column] += row[column]
            for channel in range(num_channels):
                by_values[splat, channel] += row[NUM_GEOMETRY + channel]
    return by_geometry, by_values
