"""The renderer's numba kernels: rays against primitives, the colors of places, and the loops over pixels.

Scalars in, scalars out, so that nothing is allocated in a loop. Positions and directions are in world space unless a
name says local; a direction need not have length 1, and t counts in it; colors are linear RGB until `_to_srgb`.
All kernels are in this one file, though it is long: numba keeps a compiled function until the file that it is in
changes, and would go on using old versions of what it calls elsewhere. `no_type_check` keeps the test suite's run-time
type checks out of compiled functions.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from restage.world.grammar import GROUNDS

__all__ = ["DOME_RADIUS", "FIRST_OBJECT_ID", "GROUND_ID", "SKY_ID", "count_pixels", "render_pixels"]

SKY_ID, GROUND_ID = 0, 1
"""Object ids; the objects of a description follow as 2, 3, ..."""

FIRST_OBJECT_ID = 2
_GROUND, _SKY = GROUND_ID - FIRST_OBJECT_ID, SKY_ID - FIRST_OBJECT_ID
"""Where a kernel names a primitive, ground and sky are negative."""
_PLANKS = GROUNDS.index("wood")

NUM_SAMPLES = 4
"""Rays a pixel that find out which surfaces it shows, on a grid of 2x2."""
MIN_ALIKE = 0.7
"""Cosine between two normals from which on samples of one primitive are shaded together."""
DOME_RADIUS = 9.0
"""Radius, in world units from the origin, of the dome on which the sky is painted; the ground ends there."""

ELLIPSOID, BOX, FRUSTUM, ROOF = 0, 1, 2, 3
"""Kinds of primitive, all of them convex."""

NUM_SUN_RAYS = 16
"""Places on the sun that a soft shadow is made of."""

# Columns of `PackedScene.primitives`. The frame of a primitive is turned around z and not scaled.
KIND, OWNER = 0, 1
ORIGIN_X, ORIGIN_Y, ORIGIN_Z, COS, SIN = 2, 3, 4, 5, 6
SIZE_0, SIZE_1, SIZE_2 = 7, 8, 9
RED, GREEN, BLUE = 10, 11, 12
BALL = 13
"""First of four columns, in either table: center and radius of a ball around it, in world space."""

# Columns of `PackedScene.objects`.
START, STOP = 0, 1
"""First primitive, and the one after the last."""
DIMMER = 2
"""First of four columns: the ball that stands for an object where it takes light of the sky from its surroundings."""

NEAR = 1e-4
"""A hit nearer than this is the surface that the ray starts from."""

ALL_BLOCKED = (1 << NUM_SUN_RAYS) - 1


# --- rays -----------------------------------------------------------------------------------------------------------


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _hit_ellipsoid(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """First hit of a local ray before `t_max` with an ellipsoid of these radii: (t, local normal), or `t_max`."""
    ax, ay, az = 1 / s0, 1 / s1, 1 / s2
    # In coordinates divided by the radii the ellipsoid is the unit ball, and t stays the same.
    qx, qy, qz, ex, ey, ez = px * ax, py * ay, pz * az, dx * ax, dy * ay, dz * az
    a = ex * ex + ey * ey + ez * ez
    b = qx * ex + qy * ey + qz * ez
    discriminant = b * b - a * (qx * qx + qy * qy + qz * qz - 1)
    if discriminant <= 0:
        return t_max, 0.0, 0.0, 1.0
    root = math.sqrt(discriminant)
    t = (-b - root) / a
    if t < NEAR:
        # A ray that starts inside, as one to the sun may by rounding, leaves through the far side.
        t = (-b + root) / a
    if t < NEAR or t >= t_max:
        return t_max, 0.0, 0.0, 1.0
    return t, (qx + t * ex) * ax, (qy + t * ey) * ay, (qz + t * ez) * az


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _hit_frustum(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """As `_hit_ellipsoid`, for a closed frustum: radius s0 at z = 0 and s1 at z = s2."""
    best, nx, ny, nz = t_max, 0.0, 0.0, 1.0
    slope = (s1 - s0) / s2
    radius = s0 + slope * pz
    # The radius grows linearly with z, so that the side is still a quadratic in t.
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = px * dx + py * dy - slope * radius * dz
    discriminant = b * b - a * (px * px + py * py - radius * radius)
    # a is 0 for a ray parallel to the side: the equation is linear then, and skipping it costs a line of no width.
    if discriminant > 0 and abs(a) > 1e-12:
        root = math.sqrt(discriminant)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            z = pz + t * dz
            if NEAR < t < best and 0 <= z <= s2:
                best = t
                nx, ny, nz = px + t * dx, py + t * dy, -slope * (s0 + slope * z)
    if abs(dz) > 1e-9:
        for z, reach, normal in ((0.0, s0, -1.0), (s2, s1, 1.0)):
            t = (z - pz) / dz
            x, y = px + t * dx, py + t * dy
            if NEAR < t < best and x * x + y * y <= reach * reach:
                best, nx, ny, nz = t, 0.0, 0.0, normal
    return best, nx, ny, nz


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _clip(enter, leave, mx, my, mz, nx, ny, nz, away, speed):
    """Clip the stretch [enter, leave] of a ray by a half space with outward normal n; m is the normal where it enters.

    `away` is the signed distance from the ray's origin to the face along n, `speed` the direction times n.
    """
    # A ray along the face is either in the half space for good or never.
    if abs(speed) < 1e-12:
        return (1e30 if away < 0 else enter), leave, mx, my, mz
    t = away / speed
    if speed < 0:
        if t > enter:
            return t, leave, nx, ny, nz
        return enter, leave, mx, my, mz
    return enter, min(leave, t), mx, my, mz


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _hit_box(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """As `_hit_ellipsoid`, for a box of these half extents around the origin."""
    enter, leave, mx, my, mz = -1e30, 1e30, 0.0, 0.0, 1.0
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 1.0, 0.0, 0.0, s0 - px, dx)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, -1.0, 0.0, 0.0, s0 + px, -dx)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, 1.0, 0.0, s1 - py, dy)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, -1.0, 0.0, s1 + py, -dy)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, 0.0, 1.0, s2 - pz, dz)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, 0.0, -1.0, s2 + pz, -dz)
    if enter >= leave or enter < NEAR or enter >= t_max:
        return t_max, 0.0, 0.0, 1.0
    return enter, mx, my, mz


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _hit_roof(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """As `_hit_ellipsoid`, for a gable roof: half extents s0 along the ridge and s1 across it, height s2 from z = 0."""
    # The two slopes as planes: unit normal (0, ny, nz), and distance from the middle of the base.
    slant = 1 / math.sqrt(s1 * s1 + s2 * s2)
    ny, nz, reach = s2 * slant, s1 * slant, s1 * s2 * slant
    enter, leave, mx, my, mz = -1e30, 1e30, 0.0, 0.0, 1.0
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 1.0, 0.0, 0.0, s0 - px, dx)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, -1.0, 0.0, 0.0, s0 + px, -dx)
    rise = nz * pz - reach
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, ny, nz, -ny * py - rise, ny * dy + nz * dz)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, -ny, nz, ny * py - rise, -ny * dy + nz * dz)
    enter, leave, mx, my, mz = _clip(enter, leave, mx, my, mz, 0.0, 0.0, -1.0, pz, -dz)
    if enter >= leave or enter < NEAR or enter >= t_max:
        return t_max, 0.0, 0.0, 1.0
    return enter, mx, my, mz


@njit(cache=True, fastmath=True)
@no_type_check
def _hit_primitive(kind, s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """First hit of a local ray with a primitive of any kind: (t, local normal), or `t_max`."""
    if kind == ELLIPSOID:
        return _hit_ellipsoid(s0, s1, s2, px, py, pz, dx, dy, dz, t_max)
    if kind == FRUSTUM:
        return _hit_frustum(s0, s1, s2, px, py, pz, dx, dy, dz, t_max)
    if kind == BOX:
        return _hit_box(s0, s1, s2, px, py, pz, dx, dy, dz, t_max)
    return _hit_roof(s0, s1, s2, px, py, pz, dx, dy, dz, t_max)


@njit(cache=True, fastmath=True)
@no_type_check
def _hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, t_max):
    """Find what a ray hits first before `t_max`, among `candidates[:count]`.

    Returns:
        t, the primitive (-1 for none) and the unit normal in world space.
    """
    best, part = t_max, -1
    nx, ny, nz = 0.0, 0.0, 1.0
    for k in range(count):
        p = candidates[k]
        # The ray goes into the primitive's frame, since one ray is cheaper to turn than its equations.
        cos, sin = table[p, COS], table[p, SIN]
        qx, qy, qz = ox - table[p, ORIGIN_X], oy - table[p, ORIGIN_Y], oz - table[p, ORIGIN_Z]
        t, hx, hy, hz = _hit_primitive(
            int(table[p, KIND]), table[p, SIZE_0], table[p, SIZE_1], table[p, SIZE_2],
            cos * qx + sin * qy, cos * qy - sin * qx, qz, cos * dx + sin * dy, cos * dy - sin * dx, dz, best,
        )  # fmt: skip
        if t < best:
            best, part = t, p
            nx, ny, nz = cos * hx - sin * hy, sin * hx + cos * hy, hz
    # Only the nearest hit's normal is worth a square root.
    norm = 1 / math.sqrt(nx * nx + ny * ny + nz * nz)
    return best, part, nx * norm, ny * norm, nz * norm


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _is_near_cone(table, i, axis, slope, x, y, z):
    """Whether the ball of row i may reach into a cone from (x, y, z): unit axis, and `slope` radius per length."""
    radius = table[i, BALL + 3]
    vx, vy, vz = table[i, BALL] - x, table[i, BALL + 1] - y, table[i, BALL + 2] - z
    along = vx * axis[0] + vy * axis[1] + vz * axis[2]
    if along < -radius:
        return False
    # A ball touches the cone if it touches its side, hence the slanted radius rather than the radius.
    reach = slope * max(along, 0.0) + radius * math.sqrt(1 + slope * slope)
    return vx * vx + vy * vy + vz * vz - along * along < reach * reach


@njit(cache=True, fastmath=True)
@no_type_check
def _blocked_rays(scene, p, x, y, z, blocked):
    """Add to the bit set `blocked` the rays from a place to the sun that primitive p blocks."""
    table, sun_rays = scene.primitives, scene.sun_rays
    cos, sin = table[p, COS], table[p, SIN]
    qx, qy, pz = x - table[p, ORIGIN_X], y - table[p, ORIGIN_Y], z - table[p, ORIGIN_Z]
    px, py = cos * qx + sin * qy, cos * qy - sin * qx
    kind, s0, s1, s2 = int(table[p, KIND]), table[p, SIZE_0], table[p, SIZE_1], table[p, SIZE_2]
    for k in range(NUM_SUN_RAYS):
        # One bit a ray: a ray that something blocks already is not traced again.
        if blocked & (1 << k) == 0:
            dx, dy, dz = sun_rays[p, k, 0], sun_rays[p, k, 1], sun_rays[p, k, 2]
            if _hit_primitive(kind, s0, s1, s2, px, py, pz, dx, dy, dz, 1e9)[0] < 1e9:
                blocked |= 1 << k
    return blocked


@njit(cache=True, fastmath=True)
@no_type_check
def _lit_share(scene, light, part, x, y, z, nx, ny, nz):
    """Mean over the places on the sun of the cosine to a surface, 0 where a place is hidden: soft shadow and shading.

    A primitive is convex and so never shadows itself. Objects and primitives that stay clear of the cone to the sun
    are left out at once; most places see the whole sun.
    The place (x, y, z) with unit normal n lies on the primitive `part`, -1 for the ground.
    """
    objects, sun_rays = scene.objects, scene.sun_rays
    axis, slope = light.toward_sun, light.sun_slope
    facing = nx * axis[0] + ny * axis[1] + nz * axis[2]
    # Even the place on the sun that is highest over the surface lies below its horizon.
    if facing <= -slope:
        return 0.0
    # Off the surface, so that rounding does not put the place below the ground or inside its own object.
    x, y, z = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
    blocked = 0
    for i in range(objects.shape[0]):
        if _is_near_cone(objects, i, axis, slope, x, y, z):
            for p in range(int(objects[i, START]), int(objects[i, STOP])):
                if p != part and _is_near_cone(scene.primitives, p, axis, slope, x, y, z):
                    blocked = _blocked_rays(scene, p, x, y, z, blocked)
                    if blocked == ALL_BLOCKED:
                        return 0.0
    # The whole sun is above the horizon, where the mean of cosines is the cosine to the mean direction.
    if blocked == 0 and facing >= slope:
        return nx * light.mean_sun_ray[0] + ny * light.mean_sun_ray[1] + nz * light.mean_sun_ray[2]
    share = 0.0
    for k in range(NUM_SUN_RAYS):
        if blocked & (1 << k) == 0:
            share += max(0.0, nx * sun_rays[-1, k, 0] + ny * sun_rays[-1, k, 1] + nz * sun_rays[-1, k, 2])
    return share / NUM_SUN_RAYS


# --- colors --------------------------------------------------------------------------------------------------------


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _hash(i, j):
    """A number in [0, 1] that looks random, for a place on a grid."""
    # Large odd factors and shifts mix the bits, so that neighbors on the grid have nothing in common.
    n = (i * 374761393 + j * 668265263) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, fastmath=True)
@no_type_check
def _noise(x, y):
    """Smooth value noise in [0, 1]; the grid has step 1."""
    i, j = math.floor(x), math.floor(y)
    u, v = x - i, y - j
    # The smoothstep curve has no slope at the grid's points, so that no creases show there.
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = int(i), int(j)
    low = _hash(i, j) * (1 - u) + _hash(i + 1, j) * u
    high = _hash(i, j + 1) * (1 - u) + _hash(i + 1, j + 1) * u
    return low * (1 - v) + high * v


@njit(cache=True, fastmath=True)
@no_type_check
def _ground_paint(ground, x, y):
    """Reflectance of the ground at a place; `ground` counts in the order of `GROUNDS`."""
    if ground == _PLANKS:
        width = 0.55
        plank = math.floor(y / width)
        inside = y / width - plank
        tone = 0.75 + 0.40 * _hash(int(plank), 3) + 0.22 * _noise(1.2 * x + 9.7 * plank, 9.0 * y)
        edge = min(inside, 1 - inside) * width
        v = tone * (0.45 + 0.55 * min(1.0, edge / 0.035))
        return 0.40 * v, 0.20 * v, 0.085 * v
    coarse, fine = _noise(1.7 * x + 31, 1.7 * y + 17), _noise(6.1 * x + 5, 6.1 * y + 71)
    if ground == 0:
        v = 0.62 + 0.50 * coarse + 0.30 * fine
        return 0.13 * v + 0.05 * coarse, 0.34 * v, 0.05 * v
    if ground == 1:
        wave = 0.5 + 0.5 * math.sin(5.0 * (0.8 * x + 0.45 * y) + 3.0 * coarse)
        v = 0.86 + 0.10 * coarse + 0.07 * fine + 0.09 * wave
        return 0.72 * v, 0.53 * v, 0.27 * v
    v = 0.88 + 0.10 * coarse + 0.04 * fine
    return 0.84 * v, 0.88 * v, 0.94 * v


@njit(cache=True, fastmath=True)
@no_type_check
def _dome_distance(ox, oy, oz, dx, dy, dz):
    """Find t at which a ray from inside the dome leaves it."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    outside = ox * ox + oy * oy + oz * oz - DOME_RADIUS * DOME_RADIUS
    return (-b + math.sqrt(max(0.0, b * b - a * outside))) / a


@njit(cache=True, fastmath=True)
@no_type_check
def _sky_color(light, x, y, z):
    """Color of a place on the dome: from the horizon's to the zenith's, with clouds."""
    z = max(0.0, z / DOME_RADIUS)
    blend = 1 - (1 - min(1.0, 1.25 * z)) ** 2
    cover = 0.0
    if light.cloud_amount > 0:
        # As if clouds lay on a plane overhead: they grow narrow towards the horizon.
        x, y = x / (z + 0.35), y / (z + 0.35)
        cloud = 0.65 * _noise(0.16 * x + 7, 0.26 * y + 3) + 0.35 * _noise(0.45 * x, 0.6 * y)
        cover = light.cloud_amount * min(1.0, max(0.0, (cloud - 0.48) * 4.0)) * min(1.0, z * 5.0)
    low, high = (1 - blend) * (1 - cover), blend * (1 - cover)
    return (
        light.horizon[0] * low + light.zenith[0] * high + light.cloud[0] * cover,
        light.horizon[1] * low + light.zenith[1] * high + light.cloud[1] * cover,
        light.horizon[2] * low + light.zenith[2] * high + light.cloud[2] * cover,
    )


@njit(cache=True, fastmath=True)
@no_type_check
def _sky_share(scene, part, x, y, z, nx, ny, nz):
    """Share of the sky's light that reaches a place: dimmed by the objects nearby, each a ball, and by the ground."""
    objects = scene.objects
    owner = int(scene.primitives[part, OWNER]) if part >= 0 else -1
    free = 1.0
    for i in range(objects.shape[0]):
        if i != owner:
            vx, vy, vz = objects[i, DIMMER] - x, objects[i, DIMMER + 1] - y, objects[i, DIMMER + 2] - z
            inverse = 1 / max(math.sqrt(vx * vx + vy * vy + vz * vz), 1e-3)
            # The solid angle of a ball goes with the square of its radius over its distance.
            share = min(1.0, objects[i, DIMMER + 3] * inverse)
            facing = 0.5 + 0.5 * (nx * vx + ny * vy + nz * vz) * inverse
            free *= 1 - 0.62 * facing * share * share
    up = 0.5 + 0.5 * nz
    free *= up + 0.34 * (1 - up)
    if part >= 0:
        free *= 0.55 + 0.45 * min(1.0, z / 0.35)
    return free


@njit(cache=True, fastmath=True)
@no_type_check
def _surface_color(scene, light, part, x, y, z, nx, ny, nz, r, g, b):
    """Color of a place with unit normal n and reflectance (r, g, b) on primitive `part`, -1 for the ground."""
    lit = _lit_share(scene, light, part, x, y, z, nx, ny, nz)
    ambient = _sky_share(scene, part, x, y, z, nx, ny, nz)
    r *= light.sun[0] * lit + light.ambient[0] * ambient
    g *= light.sun[1] * lit + light.ambient[1] * ambient
    b *= light.sun[2] * lit + light.ambient[2] * ambient
    away = math.sqrt(x * x + y * y)
    far = min(1.0, max(0.0, (away - 1.6) / (DOME_RADIUS - 1.6)))
    haze = min(1.0, light.haze * far * (0.7 + 0.3 * far) + (1 - light.haze) * max(0.0, (away - 6.0) / 3.0))
    if light.haze > 0.99 and part >= 0:
        haze += 0.10
    return (
        r + (light.horizon[0] - r) * haze,
        g + (light.horizon[1] - g) * haze,
        b + (light.horizon[2] - b) * haze,
    )


TABLE_STEP = 1 / 1024
"""Step of `_TONES` in the square root of a linear value."""

_roots = np.arange(2050) * TABLE_STEP
_TONES = np.clip(_roots**2 / (1 + np.maximum(0.0, _roots**2 - 0.75) * 0.55), 0, 1) ** (1 / 2.2)


@njit(cache=True, fastmath=True)
@no_type_check
def _to_srgb(value):
    """Compress the highlights of a linear value of at most 4 and apply a gamma of 2.2: a value in [0, 1]."""
    place = min(math.sqrt(max(value, 0.0)) / TABLE_STEP, 2048.0)
    index = int(place)
    return _TONES[index] + (place - index) * (_TONES[index + 1] - _TONES[index])


# --- pixels ---------------------------------------------------------------------------------------------------------

# Columns of the table of surfaces that a pixel shows: sums over its samples of place, normal, reflectance; their count.
_X, _Y, _Z, _NX, _NY, _NZ, _RED, _GREEN, _BLUE, _COUNT = range(10)


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _look(table, candidates, count, ox, oy, oz, dx, dy, dz):
    """Find what a ray from inside the dome meets: t, primitive or `_GROUND` or `_SKY`, unit normal."""
    floor = -oz / dz if dz < -1e-9 else 1e9
    t, part, nx, ny, nz = _hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, floor)
    if part < 0:
        x, y = ox + t * dx, oy + t * dy
        if dz >= -1e-9 or x * x + y * y > DOME_RADIUS * DOME_RADIUS:
            return _dome_distance(ox, oy, oz, dx, dy, dz), _SKY, 0.0, 0.0, -1.0
    return t, part, nx, ny, nz


@njit(cache=True, fastmath=True, forceinline=True)
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
    if part == _GROUND and ground == _PLANKS:  # gaps between planks are thinner than a pixel: paint each sample
        r, g, b = _ground_paint(ground, x, y)
        surfaces[k, _RED] += r
        surfaces[k, _GREEN] += g
        surfaces[k, _BLUE] += b
    elif part >= 0:
        surfaces[k, _RED] += table[part, RED]
        surfaces[k, _GREEN] += table[part, GREEN]
        surfaces[k, _BLUE] += table[part, BLUE]
    return num_surfaces


@njit(cache=True, fastmath=True, forceinline=True)
@no_type_check
def _shade_surface(scene, light, ground, part, surfaces, k):
    """Shade a surface once, at the mean place of its samples: linear RGB."""
    # Shading is what costs, and within a pixel it hardly changes: once a surface, not once a ray.
    share = 1 / surfaces[k, _COUNT]
    x, y, z = surfaces[k, _X] * share, surfaces[k, _Y] * share, surfaces[k, _Z] * share
    if part == _SKY:
        return _sky_color(light, x, y, z)
    if part == _GROUND and ground != _PLANKS:
        red, green, blue = _ground_paint(ground, x, y)
    else:
        red, green, blue = surfaces[k, _RED] * share, surfaces[k, _GREEN] * share, surfaces[k, _BLUE] * share
    norm = 1 / math.sqrt(surfaces[k, _NX] ** 2 + surfaces[k, _NY] ** 2 + surfaces[k, _NZ] ** 2)
    return _surface_color(
        scene, light, part, x, y, z, surfaces[k, _NX] * norm, surfaces[k, _NY] * norm, surfaces[k, _NZ] * norm,
        red, green, blue,
    )  # fmt: skip


@njit(cache=True, fastmath=True, forceinline=True)
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


@njit(cache=True, fastmath=True, nogil=True)
@no_type_check
def render_pixels(scene, light, ground, boxes, camera_to_world, intrinsics, image, depth, ids):
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
            image[0, v, u], image[1, v, u], image[2, v, u] = _to_srgb(red), _to_srgb(green), _to_srgb(blue)


@njit(cache=True, fastmath=True, nogil=True)
@no_type_check
def count_pixels(scene, boxes, camera_to_world, intrinsics, width, height, counts):
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
                t, part, _, _, _ = _hit_nearest(
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
