"""Ray-traced pictures of scene descriptions: description + camera -> image, depth, object ids.

Every surface is hit analytically and is matte, so that a point has one colour from everywhere. The sky is a dome at
a finite distance and the haze depends on the place and not on the camera: a splat scene can hold all of it exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import njit
from numpy import ndarray as Array

from restage.scenes.cameras import Cameras
from restage.world.grammar import GROUNDS, Description, SceneObject

__all__ = ["DOME_RADIUS", "GROUND_ID", "SKY_ID", "View", "count_object_pixels", "render_view"]

SKY_ID, GROUND_ID = 0, 1
"""Object ids; the objects of a description follow as 2, 3, ..."""
DOME_RADIUS = 9.0
"""Where ground and sky meet, in world units from the origin."""

ELLIPSOID, BOX, FRUSTUM, ROOF = 0, 1, 2, 3

PAINT = {
    "red": (0.80, 0.05, 0.05),
    "orange": (0.95, 0.36, 0.03),
    "yellow": (0.95, 0.78, 0.06),
    "green": (0.06, 0.50, 0.12),
    "blue": (0.05, 0.16, 0.80),
    "purple": (0.36, 0.08, 0.62),
    "pink": (0.95, 0.36, 0.58),
    "white": (0.92, 0.92, 0.90),
}
"""Linear RGB reflectance of the colour words."""
_BARK, _CREAM, _COAL, _CARROT = (0.22, 0.12, 0.06), (0.85, 0.76, 0.60), (0.03, 0.03, 0.035), (0.90, 0.30, 0.04)
_SLATE, _GLASS, _DOOR, _CHALK = (0.13, 0.12, 0.14), (0.50, 0.68, 0.80), (0.20, 0.10, 0.05), (0.92, 0.90, 0.86)

_Shape = tuple[int, tuple[float, float, float], tuple[float, float, float], tuple[float, float, float] | None]
# (primitive, centre, size, paint; None = the object's own colour). Sizes: ellipsoid radii; box half extents;
# frustum (bottom radius, top radius, height) from its centre up; roof half extents in x and y, and height.
_SHAPES: dict[str, tuple[_Shape, ...]] = {
    "ball": ((ELLIPSOID, (0, 0, 0.5), (0.5, 0.5, 0.5), None),),
    "cube": ((BOX, (0, 0, 0.4), (0.4, 0.4, 0.4), None),),
    "cylinder": ((FRUSTUM, (0, 0, 0), (0.36, 0.36, 1.0), None),),
    "cone": ((FRUSTUM, (0, 0, 0), (0.5, 0.0, 1.1), None),),
    "snowman": (
        (ELLIPSOID, (0, 0, 0.34), (0.37, 0.37, 0.36), None),
        (ELLIPSOID, (0, 0, 0.80), (0.27, 0.27, 0.26), None),
        (ELLIPSOID, (0, 0, 1.13), (0.19, 0.19, 0.18), None),
        (ELLIPSOID, (0, -0.24, 1.13), (0.04, 0.15, 0.04), _CARROT),
        (FRUSTUM, (0, 0, 1.25), (0.25, 0.25, 0.04), _COAL),
        (FRUSTUM, (0, 0, 1.28), (0.15, 0.14, 0.20), _COAL),
    ),
    "tree": (
        (FRUSTUM, (0, 0, 0), (0.11, 0.09, 0.40), _BARK),
        (FRUSTUM, (0, 0, 0.28), (0.48, 0.06, 0.62), None),
        (FRUSTUM, (0, 0, 0.72), (0.35, 0.0, 0.62), None),
    ),
    "mushroom": (
        (FRUSTUM, (0, 0, 0), (0.20, 0.13, 0.62), _CREAM),
        (ELLIPSOID, (0, 0, 0.62), (0.50, 0.50, 0.27), None),
        *(
            (
                ELLIPSOID,
                (0.33 * math.cos(a), 0.33 * math.sin(a), 0.805),
                (0.085, 0.085, 0.05),
                _CHALK,
            )
            for a in (0.4, 1.66, 2.92, 4.17, 5.43)
        ),
        (ELLIPSOID, (0, 0, 0.875), (0.10, 0.10, 0.04), _CHALK),
    ),
    "house": (
        (BOX, (0, 0, 0.31), (0.40, 0.32, 0.31), None),
        (ROOF, (0, 0, 0.62), (0.48, 0.40, 0.40), _SLATE),
        (BOX, (0, -0.32, 0.19), (0.085, 0.015, 0.19), _DOOR),
        (BOX, (-0.24, -0.32, 0.36), (0.08, 0.012, 0.08), _GLASS),
        (BOX, (0.24, -0.32, 0.36), (0.08, 0.012, 0.08), _GLASS),
        (BOX, (0, 0.32, 0.36), (0.10, 0.012, 0.08), _GLASS),
        (BOX, (0.22, 0.0, 0.86), (0.06, 0.06, 0.22), _SLATE),
    ),
}
_BOUNDS = {"snowman": (0.74, 0.80), "tree": (0.67, 0.72), "cone": (0.50, 0.72), "house": (0.50, 0.76)}
"""Height of the centre and radius of a sphere around each kind; (0.5, 0.75) where not named."""

# Per time: direction to the sun (unit length follows), sun radius, sun, ambient from above, sky at the horizon and
# at the top, cloud colour and amount, haze. All linear RGB.
_LIGHTS = {
    "noon": (
        (0.45, 0.35, 0.95), 0.10, (1.00, 0.95, 0.86), (0.30, 0.37, 0.48),
        (0.52, 0.72, 0.92), (0.09, 0.28, 0.72), (0.95, 0.96, 0.98, 0.60), 0.5,
    ),
    "sunset": (
        (0.85, -0.25, 0.42), 0.14, (1.05, 0.62, 0.30), (0.27, 0.20, 0.26),
        (0.95, 0.42, 0.14), (0.22, 0.12, 0.34), (0.90, 0.30, 0.28, 0.50), 0.6,
    ),
    "night": (
        (-0.55, 0.35, 0.80), 0.10, (0.26, 0.29, 0.40), (0.085, 0.10, 0.17),
        (0.030, 0.050, 0.13), (0.004, 0.007, 0.035), (0.06, 0.08, 0.16, 0.30), 0.5,
    ),
    "fog": (
        (0.20, 0.30, 1.00), 0.55, (0.30, 0.30, 0.30), (0.42, 0.43, 0.45),
        (0.62, 0.64, 0.66), (0.55, 0.57, 0.60), (0.6, 0.6, 0.6, 0.0), 1.0,
    ),
}  # fmt: skip


class View(NamedTuple):
    """What one camera sees."""

    image: Float32[Array, "3 height width"]
    """RGB in [0, 1]."""
    depth: Float32[Array, "height width"]
    """z in the camera frame at the pixel's centre, world units."""
    object_ids: Int32[Array, "height width"]
    """What the pixel's centre shows: sky, ground, or an object."""


@njit(cache=True, fastmath=True)
def _hash(i, j):
    n = (i * 374761393 + j * 668265263) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, fastmath=True)
def _noise(x, y):
    """Smooth value noise in [0, 1]."""
    i, j = math.floor(x), math.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = int(i), int(j)
    low = _hash(i, j) * (1 - u) + _hash(i + 1, j) * u
    high = _hash(i, j + 1) * (1 - u) + _hash(i + 1, j + 1) * u
    return low * (1 - v) + high * v


@njit(cache=True, fastmath=True)
def _hit_quadric(kind, prims, p, ox, oy, oz, dx, dy, dz, t_max):
    """Nearest hit of an ellipsoid or frustum in object space: (t, normal) or t = t_max."""
    px, py, pz = ox - prims[p, 1], oy - prims[p, 2], oz - prims[p, 3]
    s0, s1, s2 = prims[p, 4], prims[p, 5], prims[p, 6]
    if kind == ELLIPSOID:
        ax, ay, az = 1 / s0, 1 / s1, 1 / s2
        qx, qy, qz, ex, ey, ez = px * ax, py * ay, pz * az, dx * ax, dy * ay, dz * az
        a = ex * ex + ey * ey + ez * ez
        b = qx * ex + qy * ey + qz * ez
        disc = b * b - a * (qx * qx + qy * qy + qz * qz - 1)
        if disc <= 0:
            return t_max, 0.0, 0.0, 1.0
        root = math.sqrt(disc)
        t = (-b - root) / a
        if t < 1e-4:
            t = (-b + root) / a
        if t < 1e-4 or t >= t_max:
            return t_max, 0.0, 0.0, 1.0
        return t, (qx + t * ex) * ax, (qy + t * ey) * ay, (qz + t * ez) * az
    best, nx, ny, nz = t_max, 0.0, 0.0, 1.0
    slope = (s1 - s0) / s2
    r = s0 + slope * pz
    a = dx * dx + dy * dy - slope * slope * dz * dz
    b = px * dx + py * dy - slope * r * dz
    disc = b * b - a * (px * px + py * py - r * r)
    if disc > 0 and abs(a) > 1e-12:
        root = math.sqrt(disc)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            z = pz + t * dz
            if 1e-4 < t < best and 0 <= z <= s2:
                best = t
                nx, ny, nz = px + t * dx, py + t * dy, -slope * (s0 + slope * z)
    if abs(dz) > 1e-9:
        for z, radius, normal in ((0.0, s0, -1.0), (s2, s1, 1.0)):
            t = (z - pz) / dz
            x, y = px + t * dx, py + t * dy
            if 1e-4 < t < best and x * x + y * y <= radius * radius:
                best, nx, ny, nz = t, 0.0, 0.0, normal
    return best, nx, ny, nz


@njit(cache=True, fastmath=True)
def _hit_flat(kind, prims, p, ox, oy, oz, dx, dy, dz, t_max):
    """Nearest hit of a box or roof (a convex solid as an intersection of half spaces): (t, normal) or t = t_max."""
    px, py, pz = ox - prims[p, 1], oy - prims[p, 2], oz - prims[p, 3]
    s0, s1, s2 = prims[p, 4], prims[p, 5], prims[p, 6]
    enter, leave = -1e30, 1e30
    mx, my, mz = 0.0, 0.0, 1.0
    slant = 1 / math.sqrt(s1 * s1 + s2 * s2)
    for k in range(6):
        nx = ny = nz = 0.0
        sign = 1.0 if k % 2 == 0 else -1.0
        if k < 2:
            nx, reach = sign, s0
        elif k < 4 and kind == BOX:
            ny, reach = sign, s1
        elif k < 4:
            ny, nz, reach = sign * s2 * slant, s1 * slant, s1 * s2 * slant
        elif kind == BOX:
            nz, reach = sign, s2
        else:
            nz, reach = -1.0, 0.0
        speed = nx * dx + ny * dy + nz * dz
        away = reach - (nx * px + ny * py + nz * pz)
        if abs(speed) < 1e-12:
            if away < 0:
                return t_max, 0.0, 0.0, 1.0
        elif speed < 0:
            if away / speed > enter:
                enter, mx, my, mz = away / speed, nx, ny, nz
        else:
            leave = min(leave, away / speed)
    if enter >= leave or enter < 1e-4 or enter >= t_max:
        return t_max, 0.0, 0.0, 1.0
    return enter, mx, my, mz


@njit(cache=True, fastmath=True)
def _trace(objects, starts, prims, ox, oy, oz, dx, dy, dz, t_max, is_shadow):
    """Nearest hit of a ray with all objects: (t, object, primitive, world normal); object -1 where it hits none."""
    best, which, part = t_max, -1, -1
    nx, ny, nz = 0.0, 0.0, 1.0
    for i in range(objects.shape[0]):
        x, y, scale, cos, sin, bound_z, bound_r = objects[i]
        px, py, pz = ox - x, oy - y, oz
        bx, by, bz = -px, -py, bound_z * scale - pz
        along = bx * dx + by * dy + bz * dz
        apart = bx * bx + by * by + bz * bz
        reach = bound_r * scale
        if apart > reach * reach and (along < 0 or apart - along * along > reach * reach):
            continue
        inverse = 1 / scale
        lx, ly, lz = (cos * px + sin * py) * inverse, (-sin * px + cos * py) * inverse, pz * inverse
        ex, ey, ez = (cos * dx + sin * dy) * inverse, (-sin * dx + cos * dy) * inverse, dz * inverse
        for p in range(starts[i], starts[i + 1]):
            kind = int(prims[p, 0])
            if kind == ELLIPSOID or kind == FRUSTUM:
                t, hx, hy, hz = _hit_quadric(kind, prims, p, lx, ly, lz, ex, ey, ez, best)
            else:
                t, hx, hy, hz = _hit_flat(kind, prims, p, lx, ly, lz, ex, ey, ez, best)
            if t < best:
                best, which, part = t, i, p
                if is_shadow:
                    return best, which, part, nx, ny, nz
                norm = 1 / math.sqrt(hx * hx + hy * hy + hz * hz)
                nx, ny, nz = (cos * hx - sin * hy) * norm, (sin * hx + cos * hy) * norm, hz * norm
    return best, which, part, nx, ny, nz


@njit(cache=True, fastmath=True)
def _ground_paint(ground, x, y):
    """Reflectance of the ground at a place."""
    coarse, fine = _noise(1.7 * x + 31, 1.7 * y + 17), _noise(6.1 * x + 5, 6.1 * y + 71)
    if ground == 0:
        v = 0.62 + 0.50 * coarse + 0.30 * fine
        return 0.13 * v + 0.05 * coarse, 0.34 * v, 0.05 * v
    if ground == 1:
        wave = 0.5 + 0.5 * math.sin(5.0 * (0.8 * x + 0.45 * y) + 3.0 * coarse)
        v = 0.86 + 0.10 * coarse + 0.07 * fine + 0.09 * wave
        return 0.72 * v, 0.53 * v, 0.27 * v
    if ground == 2:
        v = 0.88 + 0.10 * coarse + 0.04 * fine
        return 0.84 * v, 0.88 * v, 0.94 * v
    width = 0.55
    plank = math.floor(y / width)
    inside = y / width - plank
    tone = 0.75 + 0.40 * _hash(int(plank), 3) + 0.22 * _noise(1.2 * x + 9.7 * plank, 9.0 * y)
    edge = min(inside, 1 - inside) * width
    v = tone * (0.45 + 0.55 * min(1.0, edge / 0.035))
    return 0.40 * v, 0.20 * v, 0.085 * v


@njit(cache=True, fastmath=True)
def _dome_distance(ox, oy, oz, dx, dy, dz):
    b = ox * dx + oy * dy + oz * dz
    return -b + math.sqrt(max(0.0, b * b - (ox * ox + oy * oy + oz * oz) + DOME_RADIUS * DOME_RADIUS))


@njit(cache=True, fastmath=True)
def _shade(objects, starts, prims, light, sun, sample, ground, ox, oy, oz, dx, dy, dz):
    """Linear colour that a ray sees."""
    floor = 1e9 if dz > -1e-9 else -oz / dz
    t, which, part, nx, ny, nz = _trace(objects, starts, prims, ox, oy, oz, dx, dy, dz, floor, False)
    dome = _dome_distance(ox, oy, oz, dx, dy, dz)
    if which < 0 and dome < floor:
        z = max(0.0, (oz + dome * dz) / DOME_RADIUS)
        blend = 1 - (1 - min(1.0, 1.25 * z)) ** 2
        x, y = (ox + dome * dx) / (z + 0.35), (oy + dome * dy) / (z + 0.35)
        cloud = 0.65 * _noise(0.16 * x + 7, 0.26 * y + 3) + 0.35 * _noise(0.45 * x, 0.6 * y)
        cover = light[18] * min(1.0, max(0.0, (cloud - 0.48) * 4.0)) * min(1.0, z * 5.0)
        r = (light[9] * (1 - blend) + light[12] * blend) * (1 - cover) + light[15] * cover
        g = (light[10] * (1 - blend) + light[13] * blend) * (1 - cover) + light[16] * cover
        bl = (light[11] * (1 - blend) + light[14] * blend) * (1 - cover) + light[17] * cover
        return r, g, bl
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    if which < 0:
        cr, cg, cb = _ground_paint(ground, x, y)
        nx, ny, nz = 0.0, 0.0, 1.0
    else:
        cr, cg, cb = prims[part, 7], prims[part, 8], prims[part, 9]
    # Soft shadow: rays to four places on the sun; the four samples of a pixel use different ones, sixteen in all.
    lit = 0.0
    for k in range(4):
        i = sample + 4 * k
        sx, sy, sz = sun[i, 0], sun[i, 1], sun[i, 2]
        cosine = nx * sx + ny * sy + nz * sz
        if cosine > 0:
            hit = _trace(objects, starts, prims, x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz, sx, sy, sz, 1e9, True)
            if hit[1] < 0:
                lit += 0.25 * cosine
    # Light from the sky, dimmed by the objects nearby (each a ball), and light from the ground below.
    free = 1.0
    for i in range(objects.shape[0]):
        if i != which:
            reach = 0.8 * objects[i, 6] * objects[i, 2]
            vx, vy, vz = objects[i, 0] - x, objects[i, 1] - y, 0.8 * objects[i, 5] * objects[i, 2] - z
            apart = math.sqrt(vx * vx + vy * vy + vz * vz)
            share = min(1.0, reach / max(apart, 1e-3))
            facing = 0.5 + 0.5 * (nx * vx + ny * vy + nz * vz) / max(apart, 1e-3)
            free *= 1 - 0.62 * facing * share * share
    up = 0.5 + 0.5 * nz
    ambient = free * (up + 0.34 * (1 - up))
    if which >= 0:
        ambient *= 0.55 + 0.45 * min(1.0, z / 0.35)
    r = cr * (light[3] * lit + light[6] * ambient)
    g = cg * (light[4] * lit + light[7] * ambient)
    bl = cb * (light[5] * lit + light[8] * ambient)
    away = math.sqrt(x * x + y * y)
    far = min(1.0, max(0.0, (away - 1.6) / (DOME_RADIUS - 1.6)))
    haze = min(1.0, light[19] * far * (0.7 + 0.3 * far) + (1 - light[19]) * max(0.0, (away - 6.0) / 3.0))
    if light[19] > 0.99 and which >= 0:
        haze += 0.10
    r, g, bl = r + (light[9] - r) * haze, g + (light[10] - g) * haze, bl + (light[11] - bl) * haze
    return r, g, bl


@njit(cache=True, fastmath=True)
def _probe(objects, starts, prims, ox, oy, oz, dx, dy, dz):
    """Depth and object id along a ray whose direction has length 1 along the camera's z axis."""
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / length, dy / length, dz / length
    floor = 1e9 if dz > -1e-9 else -oz / dz
    t, which, _, _, _, _ = _trace(objects, starts, prims, ox, oy, oz, dx, dy, dz, floor, False)
    if which >= 0:
        return t / length, 2 + which
    dome = _dome_distance(ox, oy, oz, dx, dy, dz)
    return (dome / length, SKY_ID) if dome < floor else (floor / length, GROUND_ID)


@njit(cache=True, fastmath=True)
def _to_srgb(v):
    v = v / (1.0 + max(0.0, v - 0.75) * 0.55)
    return min(1.0, max(0.0, v)) ** (1 / 2.2)


@njit(cache=True, fastmath=True, nogil=True)
def _render(objects, starts, prims, light, sun, ground, camera_to_world, intrinsics, image, depth, ids):
    _, height, width = image.shape
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    m = camera_to_world
    for v in range(height):
        for u in range(width):
            r = g = b = 0.0
            for sample in range(4):
                x = (u + 0.25 + 0.5 * (sample % 2) - cx) / fx
                y = (v + 0.25 + 0.5 * (sample // 2) - cy) / fy
                dx, dy, dz = (
                    m[0, 0] * x + m[0, 1] * y + m[0, 2],
                    m[1, 0] * x + m[1, 1] * y + m[1, 2],
                    m[2, 0] * x + m[2, 1] * y + m[2, 2],
                )
                norm = 1 / math.sqrt(dx * dx + dy * dy + dz * dz)
                sr, sg, sb = _shade(
                    objects, starts, prims, light, sun, sample, ground,
                    m[0, 3], m[1, 3], m[2, 3], dx * norm, dy * norm, dz * norm,
                )  # fmt: skip
                r, g, b = r + sr, g + sg, b + sb
            x, y = (u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy
            depth[v, u], ids[v, u] = _probe(
                objects, starts, prims, m[0, 3], m[1, 3], m[2, 3],
                m[0, 0] * x + m[0, 1] * y + m[0, 2],
                m[1, 0] * x + m[1, 1] * y + m[1, 2],
                m[2, 0] * x + m[2, 1] * y + m[2, 2],
            )  # fmt: skip
            image[0, v, u], image[1, v, u], image[2, v, u] = _to_srgb(r / 4), _to_srgb(g / 4), _to_srgb(b / 4)


@njit(cache=True, fastmath=True, nogil=True)
def _count_pixels(objects, starts, prims, camera_to_world, intrinsics, width, height, counts):
    """Count, per object, the pixels whose centre shows it: `counts[i, 0]` in the scene, `counts[i, 1]` on its own."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    m = camera_to_world
    for v in range(height):
        for u in range(width):
            x, y = (u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy
            dx = m[0, 0] * x + m[0, 1] * y + m[0, 2]
            dy = m[1, 0] * x + m[1, 1] * y + m[1, 2]
            dz = m[2, 0] * x + m[2, 1] * y + m[2, 2]
            norm = 1 / math.sqrt(dx * dx + dy * dy + dz * dz)
            dx, dy, dz = dx * norm, dy * norm, dz * norm
            nearest, which = 1e9, -1
            for i in range(objects.shape[0]):
                hit = _trace(
                    objects[i : i + 1], starts[i : i + 2], prims,
                    m[0, 3], m[1, 3], m[2, 3], dx, dy, dz, 1e9, False,
                )  # fmt: skip
                if hit[1] == 0:
                    counts[i, 1] += 1
                    if hit[0] < nearest:
                        nearest, which = hit[0], i
            if which >= 0:
                counts[which, 0] += 1


def _pack_objects(items: tuple[SceneObject, ...]) -> tuple[Array, Array, Array]:
    """Lay the objects out as arrays: placement and bounds per object, first primitive per object, primitives."""
    objects, starts, prims = [], [0], []
    for item in items:
        bound_z, bound_r = _BOUNDS.get(item.kind, (0.5, 0.75))
        objects.append((item.x, item.y, item.scale, math.cos(item.yaw_rad), math.sin(item.yaw_rad), bound_z, bound_r))
        for kind, center, size, paint in _SHAPES[item.kind]:
            prims.append((kind, *center, *size, *(paint or PAINT[item.color])))
        starts.append(len(prims))
    return (
        np.array(objects, np.float64).reshape(-1, 7),
        np.array(starts, np.int64),
        np.array(prims, np.float64).reshape(-1, 10),
    )


def _pack_light(time: str) -> tuple[Array, Array]:
    """Lay the light out as one row, and unit directions to sixteen places on the sun.

    The row: direction, sun, ambient, horizon, top, cloud colour and amount, haze.
    """
    toward, radius, sun, ambient, horizon, top, cloud, haze = _LIGHTS[time]
    direction = np.array(toward) / np.linalg.norm(toward)
    light = np.array([*direction, *sun, *ambient, *horizon, *top, *cloud, haze], np.float64)
    side = np.cross(direction, (0.0, 0.0, 1.0))
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    index = np.arange(16)
    angle, reach = index * math.pi * (3 - math.sqrt(5)), radius * np.sqrt((index + 0.5) / 16)
    disc = reach[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    rays = direction + disc
    return light, rays / np.linalg.norm(rays, axis=1, keepdims=True)


def render_view(description: Description, camera: Cameras) -> View:
    """Render a scene from one camera; the same arguments give the same picture.

    Args:
        description: The scene; z = 0 is the ground.
        camera: One camera (n = 1) inside the dome and above the ground.
    """
    matrix = camera.camera_to_world[0].numpy().astype(np.float64)
    image = np.empty((3, camera.height, camera.width), np.float32)
    depth = np.empty((camera.height, camera.width), np.float32)
    ids = np.empty((camera.height, camera.width), np.int32)
    light, sun = _pack_light(description.time)
    _render(
        *_pack_objects(description.objects),
        light,
        sun,
        GROUNDS.index(description.ground),
        matrix,
        camera.intrinsics[0].numpy().astype(np.float64),
        image,
        depth,
        ids,
    )
    return View(image=image, depth=depth, object_ids=ids)


def count_object_pixels(description: Description, camera: Cameras) -> Int64[Array, "objects 2"]:
    """Count the pixels whose centre shows each object: among the others, and if it stood there alone.

    Casts one ray a pixel and shades nothing, so a small camera answers in a fraction of a millisecond.
    """
    objects, starts, prims = _pack_objects(description.objects)
    counts = np.zeros((len(description.objects), 2), np.int64)
    matrix = camera.camera_to_world[0].numpy().astype(np.float64)
    intrinsics = camera.intrinsics[0].numpy().astype(np.float64)
    _count_pixels(objects, starts, prims, matrix, intrinsics, camera.width, camera.height, counts)
    return counts
