"""Ray-traced pictures of scene descriptions: description + camera -> image, depth, object ids.

Every surface is hit analytically and is matte, so that a point has one colour from everywhere. The sky is a dome at
a finite distance and the haze depends on the place and not on the camera: a splat scene can hold all of it exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from numba import njit
from numpy import ndarray as Array

from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.world.grammar import GROUNDS, Description
from restage.world.shade import DOME_RADIUS, dome_distance, ground_paint, sky_color, surface_color, to_srgb
from restage.world.shapes import BALL, BLUE, GREEN, OWNER, RED, PackedScene, pack_light, pack_scene
from restage.world.trace import hit_nearest

__all__ = ["DOME_RADIUS", "GROUND_ID", "SKY_ID", "View", "count_object_pixels", "render_view"]

SKY_ID, GROUND_ID = 0, 1
"""Object ids; the objects of a description follow as 2, 3, ..."""

FIRST_OBJECT_ID = 2
_GROUND, _SKY = GROUND_ID - FIRST_OBJECT_ID, SKY_ID - FIRST_OBJECT_ID
"""Where a kernel names a primitive, ground and sky are negative."""

NUM_SAMPLES = 4
"""Rays a pixel that find out which surfaces it shows, on a grid of 2x2."""
MIN_ALIKE = 0.7
"""Cosine between two normals from which on samples of one primitive are shaded together."""


class View(NamedTuple):
    """What one camera sees."""

    image: Float32[Array, "3 height width"]
    """RGB in [0, 1]."""
    depth: Float32[Array, "height width"]
    """z in the camera frame at the pixel's centre, world units."""
    object_ids: Int32[Array, "height width"]
    """What the pixel's centre shows: sky, ground, or an object."""


# Columns of the table of surfaces that a pixel shows: sums over its samples of place, normal, reflectance; their count.
_X, _Y, _Z, _NX, _NY, _NZ, _RED, _GREEN, _BLUE, _COUNT = range(10)


@njit(cache=True, fastmath=True, forceinline=True)
def _look(table, candidates, count, ox, oy, oz, dx, dy, dz):
    """Find what a ray from inside the dome meets: t, primitive or `_GROUND` or `_SKY`, unit normal."""
    floor = -oz / dz if dz < -1e-9 else 1e9
    t, part, nx, ny, nz = hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, floor)
    if part < 0:
        x, y = ox + t * dx, oy + t * dy
        if dz >= -1e-9 or x * x + y * y > DOME_RADIUS * DOME_RADIUS:
            return dome_distance(ox, oy, oz, dx, dy, dz), _SKY, 0.0, 0.0, -1.0
    return t, part, nx, ny, nz


@njit(cache=True, fastmath=True, forceinline=True)
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
    if part == _GROUND:
        r, g, b = ground_paint(ground, x, y)
        surfaces[k, _RED] += r
        surfaces[k, _GREEN] += g
        surfaces[k, _BLUE] += b
    elif part >= 0:
        surfaces[k, _RED] += table[part, RED]
        surfaces[k, _GREEN] += table[part, GREEN]
        surfaces[k, _BLUE] += table[part, BLUE]
    return num_surfaces


@njit(cache=True, fastmath=True, forceinline=True)
def _shade_surface(scene, light, part, surfaces, k):
    """Shade a surface once, at the mean place of its samples: linear RGB."""
    share = 1 / surfaces[k, _COUNT]
    x, y, z = surfaces[k, _X] * share, surfaces[k, _Y] * share, surfaces[k, _Z] * share
    if part == _SKY:
        return sky_color(light, x, y, z)
    norm = 1 / math.sqrt(surfaces[k, _NX] ** 2 + surfaces[k, _NY] ** 2 + surfaces[k, _NZ] ** 2)
    return surface_color(
        scene, light, part, x, y, z, surfaces[k, _NX] * norm, surfaces[k, _NY] * norm, surfaces[k, _NZ] * norm,
        surfaces[k, _RED] * share, surfaces[k, _GREEN] * share, surfaces[k, _BLUE] * share,
    )  # fmt: skip


@njit(cache=True, fastmath=True, forceinline=True)
def _pick_overlapping(boxes, low, high, place, from_indices, from_count, into):
    """Keep the primitives whose box reaches into pixel `place` along one axis; returns how many."""
    count = 0
    for k in range(from_count):
        p = from_indices[k]
        if boxes[p, low] <= place + 1 and boxes[p, high] >= place:
            into[count] = p
            count += 1
    return count


@njit(cache=True, fastmath=True, nogil=True)
def _render(scene, light, ground, boxes, camera_to_world, intrinsics, image, depth, ids):
    """Fill image, depth and ids: four rays a pixel for the colour, shaded once for each surface among them.

    Args:
        scene: The packed scene.
        light: Its light.
        ground: Index of the ground.
        boxes: Where on the image each primitive may be, "primitives 4": left, top, right, bottom in pixels.
        camera_to_world: 4x4.
        intrinsics: 3x3, in pixels.
        image: Filled with "3 height width", in [0, 1].
        depth: Filled with "height width".
        ids: Filled with "height width".
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
                # The last one, at the pixel's centre, gives depth and id; the others, on a grid, give the colour.
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
                r, g, b = _shade_surface(scene, light, parts[k], surfaces, k)
                share = surfaces[k, _COUNT] / NUM_SAMPLES
                red, green, blue = red + share * r, green + share * g, blue + share * b
            image[0, v, u], image[1, v, u], image[2, v, u] = to_srgb(red), to_srgb(green), to_srgb(blue)


@njit(cache=True, fastmath=True, nogil=True)
def _count_pixels(scene, boxes, camera_to_world, intrinsics, width, height, counts):
    """Count, per object, the pixels whose centre shows it: `counts[i, 0]` in the scene, `counts[i, 1]` on its own."""
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


def _tangents(aside: float, ahead: float, radius: float) -> tuple[float, float]:
    """Slopes of the two lines from the camera that touch a circle; infinite where it is beside the camera."""
    distance = math.hypot(aside, ahead)
    if ahead <= 1.05 * radius:
        return -math.inf, math.inf
    middle, half = math.atan2(aside, ahead), math.asin(radius / distance)
    return math.tan(middle - half), math.tan(middle + half)


def _image_boxes(scene: PackedScene, camera: _PackedCamera) -> Float64[Array, "primitives 4"]:
    """Box on the image, in pixels, around the ball of each primitive: left, top, right, bottom."""
    boxes = []
    rotation, position = camera.camera_to_world[:3, :3], camera.camera_to_world[:3, 3]
    focal_px, center = camera.intrinsics[[0, 1], [0, 1]], camera.intrinsics[:2, 2]
    for ball in scene.primitives[:, BALL : BALL + 4]:
        x, y, z = (ball[:3] - position) @ rotation
        left, right = _tangents(x, z, ball[3])
        top, bottom = _tangents(y, z, ball[3])
        boxes.append([
            left * focal_px[0] + center[0], top * focal_px[1] + center[1],
            right * focal_px[0] + center[0], bottom * focal_px[1] + center[1],
        ])  # fmt: skip
    return np.array(boxes, np.float64).reshape(-1, 4)


class _PackedCamera(NamedTuple):
    camera_to_world: Float64[Array, "4 4"]
    intrinsics: Float64[Array, "3 3"]


def _pack_camera(camera: Cameras) -> _PackedCamera:
    if len(camera) != 1:
        raise InputError(f"expected one camera, got {len(camera)}; pick one with cameras[i]")
    matrix = camera.camera_to_world[0].numpy().astype(np.float64)
    return _PackedCamera(matrix, camera.intrinsics[0].numpy().astype(np.float64))


def render_view(description: Description, camera: Cameras) -> View:
    """Render a scene from one camera; the same arguments give the same picture.

    Runs on one core and lets other threads of Python run meanwhile.

    Args:
        description: The scene; z = 0 is the ground.
        camera: One camera (n = 1) inside the dome and above the ground.

    Raises:
        InputError: not one camera, or it stands outside of the dome or below the ground.
    """
    packed = _pack_camera(camera)
    position = packed.camera_to_world[:3, 3]
    if position[2] <= 0 or np.linalg.norm(position) >= DOME_RADIUS:
        raise InputError(
            f"expected a camera above z = 0 and within {DOME_RADIUS} of the origin, got {position.tolist()}; move it"
        )
    image = np.empty((3, camera.height, camera.width), np.float32)
    depth = np.empty((camera.height, camera.width), np.float32)
    ids = np.empty((camera.height, camera.width), np.int32)
    scene = pack_scene(description)
    boxes = _image_boxes(scene, packed)
    _render(scene, pack_light(description.time), GROUNDS.index(description.ground), boxes, *packed, image, depth, ids)
    return View(image=image, depth=depth, object_ids=ids)


def count_object_pixels(description: Description, camera: Cameras) -> Int64[Array, "objects 2"]:
    """Count the pixels whose centre shows each object: among the others, and if it stood there alone.

    Casts one ray a pixel and shades nothing, so a small camera answers in a fraction of a millisecond.
    """
    packed, scene = _pack_camera(camera), pack_scene(description)
    counts = np.zeros((len(description.objects), 2), np.int64)
    _count_pixels(scene, _image_boxes(scene, packed), *packed, camera.width, camera.height, counts)
    return counts
