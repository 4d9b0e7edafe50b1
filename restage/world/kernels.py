"""The renderer's loops over pixels: rays through them, what they show, and its color.

Numba kernels, as `rays` says, from which and from `surfaces` they call everything.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import no_type_check

import numpy as np
from numba import njit

from restage.world.rays import DOME_RADIUS, OWNER, PATTERN, RED, SECOND_RED, dome_distance, hit_nearest
from restage.world.surfaces import PLANKS, ground_paint, is_second_color, sky_color, surface_color, to_srgb

__all__ = ["DOME_RADIUS", "FIRST_OBJECT_ID", "GROUND_ID", "SKY_ID", "count_pixels", "look_at_pixels", "render_pixels"]

SKY_ID, GROUND_ID = 0, 1
"""Object ids; the objects of a description follow as 2, 3, ..."""

FIRST_OBJECT_ID = 2
_GROUND, _SKY = GROUND_ID - FIRST_OBJECT_ID, SKY_ID - FIRST_OBJECT_ID
"""Where a kernel names a primitive, ground and sky are negative."""

NUM_SAMPLES = 4
"""Rays a pixel that find out which surfaces it shows, on a grid of 2x2."""
MIN_ALIKE = 0.7
"""Cosine between two normals from which on samples of one primitive are shaded together."""

# Columns of the table of surfaces that a pixel shows: sums over its samples of place, normal, reflectance; their count.
_X, _Y, _Z, _NX, _NY, _NZ, _RED, _GREEN, _BLUE, _COUNT = range(10)


@njit(fastmath=True, forceinline=True)
@no_type_check
def _look(table, candidates, count, ox, oy, oz, dx, dy, dz):
    """Find what a ray from inside the dome meets: t, primitive or `_GROUND` or `_SKY`, unit normal."""
    floor = -oz / dz if dz < -1e-9 else 1e9
    t, part, nx, ny, nz = hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, floor)
    if part < 0:
        x, y = ox + t * dx, oy + t * dy
        if dz >= -1e-9 or x * x + y * y > DOME_RADIUS * DOME_RADIUS:
            return dome_distance(ox, oy, oz, dx, dy, dz), _SKY, 0.0, 0.0, -1.0
    return t, part, nx, ny, nz


@njit(fastmath=True, forceinline=True)
@no_type_check
def _add_sample(table, ground, surfaces, parts, num_surfaces, part, x, y, z, nx, ny, nz):
    """Add a sample to the surface that it shows, or note a new surface; returns the number of surfaces."""
    k = 0
    while k < num_surfaces:
        alike = nx * surfaces[k, _NX] + ny * surfaces[k, _NY] + nz * surfaces[k, _NZ]
        if parts[k] == part and alike > MIN_ALIKE * surfaces[k, _COUNT]:
            break
        k += 1
    if k == num_surfaces:
        num_surfaces += 1
        parts[k] = part
        for column in range(10):
            surfaces[k, column] = 0.0
    surfaces[k, _X] += x
    surfaces[k, _Y] += y
    surfaces[k, _Z] += z
    surfaces[k, _NX] += nx
    surfaces[k, _NY] += ny
    surfaces[k, _NZ] += nz
    surfaces[k, _COUNT] += 1.0
    if part == _GROUND and ground == PLANKS:  # gaps between planks are thinner than a pixel: paint each sample
        r, g, b = ground_paint(ground, x, y)
        surfaces[k, _RED] += r
        surfaces[k, _GREEN] += g
        surfaces[k, _BLUE] += b
    elif part >= 0:
        column = RED
        if table[part, PATTERN] > 0 and is_second_color(table, part, x, y, z, nx, ny, nz):
            column = SECOND_RED
        surfaces[k, _RED] += table[part, column]
        surfaces[k, _GREEN] += table[part, column + 1]
        surfaces[k, _BLUE] += table[part, column + 2]
    return num_surfaces


@njit(fastmath=True, forceinline=True)
@no_type_check
def _shade_surface(scene, light, ground, part, surfaces, k):
    """Shade a surface once, at the mean place of its samples: linear RGB."""
    # Shading is what costs, and within a pixel it hardly changes: once a surface, not once a ray.
    share = 1 / surfaces[k, _COUNT]
    x, y, z = surfaces[k, _X] * share, surfaces[k, _Y] * share, surfaces[k, _Z] * share
    if part == _SKY:
        return sky_color(light, x, y, z)
    if part == _GROUND and ground != PLANKS:
        red, green, blue = ground_paint(ground, x, y)
    else:
        red, green, blue = surfaces[k, _RED] * share, surfaces[k, _GREEN] * share, surfaces[k, _BLUE] * share
    norm = 1 / math.sqrt(surfaces[k, _NX] ** 2 + surfaces[k, _NY] ** 2 + surfaces[k, _NZ] ** 2)
    return surface_color(
        scene, light, part, x, y, z, surfaces[k, _NX] * norm, surfaces[k, _NY] * norm, surfaces[k, _NZ] * norm,
        red, green, blue,
    )  # fmt: skip


@njit(fastmath=True, forceinline=True)
@no_type_check
def _pick_overlapping(boxes, low, high, place, from_indices, from_count, into):
    """Keep the primitives whose box reaches into pixel `place` along one axis; returns how many."""
    count = 0
    for k in range(from_count):
        p = from_indices[k]
        if boxes[p, low] <= place + 1 and boxes[p, high] >= place:
            into[count] = p
            count += 1
    return count


@njit(fastmath=True)
@no_type_check
def _render_pixels(scene, light, ground, boxes, camera_to_world, intrinsics, image, depth, ids):
    """Fill image, depth and ids: four rays a pixel for the color, shaded once for each surface among them.

    `boxes` says where on the image each primitive may be, "primitives 4": left, top, right, bottom in pixels. Filled
    are `image` "3 height width" in [0, 1], `depth` and `ids` "height width".
    """
    height, width = depth.shape
    table, m = scene.primitives, camera_to_world
    ox, oy, oz = m[0, 3], m[1, 3], m[2, 3]
    every, in_row, candidates = np.arange(len(boxes)), np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64)
    surfaces, parts = np.empty((4, 10)), np.empty(4, np.int64)
    for v in range(height):
        num_in_row = _pick_overlapping(boxes, 1, 3, v, every, len(boxes), in_row)
        for u in range(width):
            count = _pick_overlapping(boxes, 0, 2, u, in_row, num_in_row, candidates)
            num_surfaces = 0
            for sample in range(NUM_SAMPLES + 1):
                # The last one, at the pixel's center, gives depth and id; the others, on a grid, give the color.
                is_center = sample == NUM_SAMPLES
                right = 0.5 if is_center else 0.25 + 0.5 * (sample % 2)
                down = 0.5 if is_center else 0.25 + 0.5 * (sample // 2)
                x, y = (
                    (u + right - intrinsics[0, 2]) / intrinsics[0, 0],
                    (v + down - intrinsics[1, 2]) / intrinsics[1, 1],
                )
                dx = m[0, 0] * x + m[0, 1] * y + m[0, 2]
                dy = m[1, 0] * x + m[1, 1] * y + m[1, 2]
                dz = m[2, 0] * x + m[2, 1] * y + m[2, 2]
                t, part, nx, ny, nz = _look(table, candidates, count, ox, oy, oz, dx, dy, dz)
                if is_center:
                    depth[v, u] = t
                    ids[v, u] = FIRST_OBJECT_ID + (int(table[part, OWNER]) if part >= 0 else part)
                else:
                    num_surfaces = _add_sample(
                        table, ground, surfaces, parts, num_surfaces, part,
                        ox + t * dx, oy + t * dy, oz + t * dz, nx, ny, nz,
                    )  # fmt: skip
            red = green = blue = 0.0
            for k in range(num_surfaces):
                r, g, b = _shade_surface(scene, light, ground, parts[k], surfaces, k)
                share = surfaces[k, _COUNT] / NUM_SAMPLES
                red, green, blue = red + share * r, green + share * g, blue + share * b
            image[0, v, u], image[1, v, u], image[2, v, u] = to_srgb(red), to_srgb(green), to_srgb(blue)


@njit(fastmath=True)
@no_type_check
def _count_pixels(scene, boxes, camera_to_world, intrinsics, width, height, counts):
    """Count, per object, the pixels whose center shows it: `counts[i, 0]` in the scene, `counts[i, 1]` on its own."""
    table, m = scene.primitives, camera_to_world
    every, in_row, candidates = np.arange(len(boxes)), np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64)
    for v in range(height):
        num_in_row = _pick_overlapping(boxes, 1, 3, v, every, len(boxes), in_row)
        for u in range(width):
            count = _pick_overlapping(boxes, 0, 2, u, in_row, num_in_row, candidates)
            x, y = (u + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0], (v + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
            dx = m[0, 0] * x + m[0, 1] * y + m[0, 2]
            dy = m[1, 0] * x + m[1, 1] * y + m[1, 2]
            dz = m[2, 0] * x + m[2, 1] * y + m[2, 2]
            nearest, seen, last = 1e9, -1, -1
            for k in range(count):
                t, part, _, _, _ = hit_nearest(
                    table, candidates[k : k + 1], 1, m[0, 3], m[1, 3], m[2, 3], dx, dy, dz, 1e9
                )
                if part >= 0:
                    owner = int(table[part, OWNER])
                    if owner != last:
                        counts[owner, 1] += 1
                        last = owner
                    if t < nearest:
                        nearest, seen = t, owner
            if seen >= 0:
                counts[seen, 0] += 1


@njit(fastmath=True)
@no_type_check
def _look_at_pixels(scene, boxes, camera_to_world, intrinsics, pixels, depths, ids):
    """Find depth and object id at any places on the image, `pixels` "n 2", each by one ray."""
    table, m = scene.primitives, camera_to_world
    candidates = np.empty(len(boxes), np.int64)
    for i in range(len(pixels)):
        u, v = pixels[i, 0], pixels[i, 1]
        count = 0
        for p in range(len(boxes)):
            if boxes[p, 0] <= u <= boxes[p, 2] and boxes[p, 1] <= v <= boxes[p, 3]:
                candidates[count] = p
                count += 1
        x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]
        dx = m[0, 0] * x + m[0, 1] * y + m[0, 2]
        dy = m[1, 0] * x + m[1, 1] * y + m[1, 2]
        dz = m[2, 0] * x + m[2, 1] * y + m[2, 2]
        t, part, _, _, _ = _look(table, candidates, count, m[0, 3], m[1, 3], m[2, 3], dx, dy, dz)
        depths[i] = t
        ids[i] = FIRST_OBJECT_ID + (int(table[part, OWNER]) if part >= 0 else part)


def _compile_entries(version):
    """Compile the kernels that others call, which alone are kept on disk.

    numba keeps a compiled function until the file that it is in changes, and would go on using old versions of what it
    calls elsewhere. What a function takes from around it counts too: hence a version that stands for all files.
    """

    @njit(cache=True, fastmath=True, nogil=True)
    @no_type_check
    def render_pixels(scene, light, ground, boxes, camera_to_world, intrinsics, image, depth, ids):
        if version >= 0:
            _render_pixels(scene, light, ground, boxes, camera_to_world, intrinsics, image, depth, ids)

    @njit(cache=True, fastmath=True, nogil=True)
    @no_type_check
    def count_pixels(scene, boxes, camera_to_world, intrinsics, width, height, counts):
        if version >= 0:
            _count_pixels(scene, boxes, camera_to_world, intrinsics, width, height, counts)

    @njit(cache=True, fastmath=True, nogil=True)
    @no_type_check
    def look_at_pixels(scene, boxes, camera_to_world, intrinsics, pixels, depths, ids):
        if version >= 0:
            _look_at_pixels(scene, boxes, camera_to_world, intrinsics, pixels, depths, ids)

    return render_pixels, count_pixels, look_at_pixels


_SOURCES = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("rays", "surfaces", "kernels"))
render_pixels, count_pixels, look_at_pixels = _compile_entries(int(hashlib.sha256(_SOURCES).hexdigest()[:15], 16))
