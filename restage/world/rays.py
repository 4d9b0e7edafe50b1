"""Rays against primitives: what they hit first, and which of those to the sun are blocked.

The innermost of the renderer's numba kernels; `surfaces` and `kernels` build on them. Scalars in, scalars out, so that
nothing is allocated in a loop. Positions and directions are in world space unless a name says local; a direction need
not have length 1, and t counts in it. `no_type_check` keeps the test suite's run-time type checks out of compiled
functions.
"""

from __future__ import annotations

import math
from typing import no_type_check

from numba import njit

__all__ = ["DOME_RADIUS", "dome_distance", "hit_nearest", "lit_share"]

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
PATTERN = 17
SECOND_RED = 18
"""First of three columns: the pattern's other color."""
CENTER, UNSCALE = 21, 24
"""First of three columns: place in the object that its pattern is laid around; then 1 / the object's scale."""

# Columns of `PackedScene.objects`.
START, STOP = 0, 1
"""First primitive, and the one after the last."""
DIMMER = 2
"""First of four columns: the ball that stands for an object where it takes light of the sky from its surroundings."""

NEAR = 1e-4
"""A hit nearer than this is the surface that the ray starts from."""

ALL_BLOCKED = (1 << NUM_SUN_RAYS) - 1


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True)
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


@njit(fastmath=True)
@no_type_check
def hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, t_max):
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


@njit(fastmath=True)
@no_type_check
def dome_distance(ox, oy, oz, dx, dy, dz):
    """Find t at which a ray from inside the dome leaves it."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    outside = ox * ox + oy * oy + oz * oz - DOME_RADIUS * DOME_RADIUS
    return (-b + math.sqrt(max(0.0, b * b - a * outside))) / a


@njit(fastmath=True, forceinline=True)
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


@njit(fastmath=True)
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


@njit(fastmath=True)
@no_type_check
def lit_share(scene, light, part, x, y, z, nx, ny, nz):
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
