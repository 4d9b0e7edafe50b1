"""Rays against primitives, as numba kernels: what a ray hits first, and which rays to the sun are blocked.

`shade.py` and `render.py` call these; scalars in, scalars out, so that nothing is allocated in a loop. Positions and
directions are in world space unless a name says local; a direction need not have length 1, and t counts in it.
"""

from __future__ import annotations

import math

from numba import njit

from restage.world.shapes import (
    BALL,
    BOX,
    COS,
    ELLIPSOID,
    FRUSTUM,
    KIND,
    NUM_SUN_RAYS,
    ORIGIN_X,
    ORIGIN_Y,
    ORIGIN_Z,
    SIN,
    SIZE_0,
    SIZE_1,
    SIZE_2,
    START,
    STOP,
)

__all__ = ["hit_nearest", "is_near_cone", "lit_share"]

NEAR = 1e-4
"""A hit nearer than this is the surface that the ray starts from."""

ALL_BLOCKED = (1 << NUM_SUN_RAYS) - 1


@njit(cache=True, fastmath=True, forceinline=True)
def _hit_ellipsoid(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """First hit of a local ray before `t_max` with an ellipsoid of these radii: (t, local normal), or `t_max`."""
    ax, ay, az = 1 / s0, 1 / s1, 1 / s2
    qx, qy, qz, ex, ey, ez = px * ax, py * ay, pz * az, dx * ax, dy * ay, dz * az
    a = ex * ex + ey * ey + ez * ez
    b = qx * ex + qy * ey + qz * ez
    discriminant = b * b - a * (qx * qx + qy * qy + qz * qz - 1)
    if discriminant <= 0:
        return t_max, 0.0, 0.0, 1.0
    root = math.sqrt(discriminant)
    t = (-b - root) / a
    if t < NEAR:
        t = (-b + root) / a
    if t < NEAR or t >= t_max:
        return t_max, 0.0, 0.0, 1.0
    return t, (qx + t * ex) * ax, (qy + t * ey) * ay, (qz + t * ez) * az


@njit(cache=True, fastmath=True, forceinline=True)
def _hit_frustum(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """As `_hit_ellipsoid`, for a closed frustum: radius s0 at z = 0 and s1 at z = s2."""
    best, nx, ny, nz = t_max, 0.0, 0.0, 1.0
    slope = (s1 - s0) / s2
    radius = s0 + slope * pz
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = px * dx + py * dy - slope * radius * dz
    discriminant = b * b - a * (px * px + py * py - radius * radius)
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
def _clip(enter, leave, mx, my, mz, nx, ny, nz, away, speed):
    """Clip the stretch [enter, leave] of a ray by a half space with outward normal n.

    Args:
        enter: t at which the ray enters the solid, so far.
        leave: t at which it leaves it.
        mx: Normal of the face where it enters, as my and mz.
        my: See mx.
        mz: See mx.
        nx: Outward normal of the half space, as ny and nz.
        ny: See nx.
        nz: See nx.
        away: Signed distance from the ray's origin to the face along n.
        speed: Direction times n.
    """
    if abs(speed) < 1e-12:
        return (1e30 if away < 0 else enter), leave, mx, my, mz
    t = away / speed
    if speed < 0:
        if t > enter:
            return t, leave, nx, ny, nz
        return enter, leave, mx, my, mz
    return enter, min(leave, t), mx, my, mz


@njit(cache=True, fastmath=True, forceinline=True)
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
def _hit_roof(s0, s1, s2, px, py, pz, dx, dy, dz, t_max):
    """As `_hit_ellipsoid`, for a gable roof: half extents s0 along the ridge and s1 across it, height s2 from z = 0."""
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
def hit_nearest(table, candidates, count, ox, oy, oz, dx, dy, dz, t_max):
    """Find what a ray hits first before `t_max`, among `candidates[:count]`.

    Returns:
        t, the primitive (-1 for none) and the unit normal in world space.
    """
    best, part = t_max, -1
    nx, ny, nz = 0.0, 0.0, 1.0
    for k in range(count):
        p = candidates[k]
        cos, sin = table[p, COS], table[p, SIN]
        qx, qy, qz = ox - table[p, ORIGIN_X], oy - table[p, ORIGIN_Y], oz - table[p, ORIGIN_Z]
        t, hx, hy, hz = _hit_primitive(
            int(table[p, KIND]), table[p, SIZE_0], table[p, SIZE_1], table[p, SIZE_2],
            cos * qx + sin * qy, cos * qy - sin * qx, qz, cos * dx + sin * dy, cos * dy - sin * dx, dz, best,
        )  # fmt: skip
        if t < best:
            best, part = t, p
            nx, ny, nz = cos * hx - sin * hy, sin * hx + cos * hy, hz
    norm = 1 / math.sqrt(nx * nx + ny * ny + nz * nz)
    return best, part, nx * norm, ny * norm, nz * norm


@njit(cache=True, fastmath=True, forceinline=True)
def is_near_cone(table, i, axis, slope, x, y, z):
    """Whether the ball of row i may reach into a cone from (x, y, z): unit axis, and `slope` radius per length."""
    radius = table[i, BALL + 3]
    vx, vy, vz = table[i, BALL] - x, table[i, BALL + 1] - y, table[i, BALL + 2] - z
    along = vx * axis[0] + vy * axis[1] + vz * axis[2]
    if along < -radius:
        return False
    reach = slope * max(along, 0.0) + radius * math.sqrt(1 + slope * slope)
    return vx * vx + vy * vy + vz * vz - along * along < reach * reach


@njit(cache=True, fastmath=True)
def _blocked_rays(scene, p, x, y, z, blocked):
    """Add to the bit set `blocked` the rays from a place to the sun that primitive p blocks."""
    table, sun_rays = scene.primitives, scene.sun_rays
    cos, sin = table[p, COS], table[p, SIN]
    qx, qy, pz = x - table[p, ORIGIN_X], y - table[p, ORIGIN_Y], z - table[p, ORIGIN_Z]
    px, py = cos * qx + sin * qy, cos * qy - sin * qx
    kind, s0, s1, s2 = int(table[p, KIND]), table[p, SIZE_0], table[p, SIZE_1], table[p, SIZE_2]
    for k in range(NUM_SUN_RAYS):
        if blocked & (1 << k) == 0:
            dx, dy, dz = sun_rays[p, k, 0], sun_rays[p, k, 1], sun_rays[p, k, 2]
            if _hit_primitive(kind, s0, s1, s2, px, py, pz, dx, dy, dz, 1e9)[0] < 1e9:
                blocked |= 1 << k
    return blocked


@njit(cache=True, fastmath=True)
def lit_share(scene, light, part, x, y, z, nx, ny, nz):
    """Mean over the places on the sun of the cosine to a surface, 0 where a place is hidden: soft shadow and shading.

    A primitive is convex and so never shadows itself. Objects and primitives that stay clear of the cone to the sun
    are left out at once; most places see the whole sun.

    Args:
        scene: The packed scene.
        light: Its light.
        part: The primitive that the place lies on, -1 for the ground.
        x: The place, as y and z.
        y: See x.
        z: See x.
        nx: Unit normal there, as ny and nz.
        ny: See nx.
        nz: See nx.
    """
    objects, sun_rays = scene.objects, scene.sun_rays
    axis, slope = light.toward_sun, light.sun_slope
    facing = nx * axis[0] + ny * axis[1] + nz * axis[2]
    if facing <= -slope:
        return 0.0
    x, y, z = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
    blocked = 0
    for i in range(objects.shape[0]):
        if is_near_cone(objects, i, axis, slope, x, y, z):
            for p in range(int(objects[i, START]), int(objects[i, STOP])):
                if p != part and is_near_cone(scene.primitives, p, axis, slope, x, y, z):
                    blocked = _blocked_rays(scene, p, x, y, z, blocked)
                    if blocked == ALL_BLOCKED:
                        return 0.0
    if blocked == 0 and facing >= slope:
        return nx * light.mean_sun_ray[0] + ny * light.mean_sun_ray[1] + nz * light.mean_sun_ray[2]
    share = 0.0
    for k in range(NUM_SUN_RAYS):
        if blocked & (1 << k) == 0:
            share += max(0.0, nx * sun_rays[-1, k, 0] + ny * sun_rays[-1, k, 1] + nz * sun_rays[-1, k, 2])
    return share / NUM_SUN_RAYS
