"""Colors of places: the paint of grounds and patterns, the sky, and surfaces in their light.

Numba kernels, as `rays` says; colors are linear RGB until `to_srgb`.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from restage.world.description import GROUNDS, PATTERNS
from restage.world.rays import CENTER, COS, DIMMER, DOME_RADIUS, OWNER, PATTERN, SIN, UNSCALE, lit_share

__all__ = ["PLANKS", "ground_paint", "is_second_color", "sky_color", "surface_color", "to_srgb"]

PLANKS = GROUNDS.index("wood")
STRIPED, CHECKED, DOTTED, BANDED = (1 + PATTERNS.index(name) for name in ("striped", "checked", "dotted", "banded"))
"""Patterns in the table of primitives, where 0 is none."""
STRIPE, CHECK, BAND = 0.16, 0.25, 0.3
"""Widths, in units of a normal object's size."""
DOT, DOT_RADIUS = 0.3, 0.33
"""Distance of dots; their radius as a share of it."""


@njit(fastmath=True, forceinline=True)
@no_type_check
def _hash(i, j):
    """A number in [0, 1] that looks random, for a place on a grid."""
    # Large odd factors and shifts mix the bits, so that neighbors on the grid have nothing in common.
    n = (i * 374761393 + j * 668265263) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(fastmath=True)
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


@njit(fastmath=True)
@no_type_check
def ground_paint(ground, x, y):
    """Reflectance of the ground at a place; `ground` counts in the order of `GROUNDS`."""
    if ground == PLANKS:
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


@njit(fastmath=True)
@no_type_check
def is_second_color(table, part, x, y, z, nx, ny, nz):
    """Whether a place with normal n on a primitive with a pattern has the pattern's other color."""
    cos, sin, unscale = table[part, COS], table[part, SIN], table[part, UNSCALE]
    # In the frame of the object, so that a pattern turns and grows with it and runs on from part to part.
    x, y, z = x - table[part, CENTER], y - table[part, CENTER + 1], (z - table[part, CENTER + 2]) * unscale
    x, y = (cos * x + sin * y) * unscale, (cos * y - sin * x) * unscale
    pattern = int(table[part, PATTERN])
    if pattern == STRIPED:
        # Aslant to all axes, so that every side of a cube shows stripes.
        return int(math.floor((0.55 * x + 0.55 * y + 0.63 * z) / STRIPE)) % 2 == 1
    if pattern == BANDED:
        return abs(z) < 0.5 * BAND
    if pattern == CHECKED:
        # Half a check off the middle, so that no side of a cube lies between two layers of checks.
        cells = math.floor(x / CHECK + 0.5) + math.floor(y / CHECK + 0.5) + math.floor(z / CHECK + 0.5)
        return int(cells) % 2 == 1
    # Dots are laid on the plane that the surface faces most, where they are round.
    nx, ny, nz = abs(cos * nx + sin * ny), abs(cos * ny - sin * nx), abs(nz)
    if nz >= nx and nz >= ny:
        a, b = x, y
    elif nx >= ny:
        a, b = y, z
    else:
        a, b = x, z
    row = math.floor(b / DOT + 0.5)
    a, b = a / DOT + 0.5 * (int(row) % 2), b / DOT - row
    a -= math.floor(a + 0.5)
    return a * a + b * b < DOT_RADIUS * DOT_RADIUS


@njit(fastmath=True)
@no_type_check
def sky_color(light, x, y, z):
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


@njit(fastmath=True)
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


@njit(fastmath=True)
@no_type_check
def surface_color(scene, light, part, x, y, z, nx, ny, nz, r, g, b):
    """Color of a place with unit normal n and reflectance (r, g, b) on primitive `part`, -1 for the ground."""
    lit = lit_share(scene, light, part, x, y, z, nx, ny, nz)
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


@njit(fastmath=True)
@no_type_check
def to_srgb(value):
    """Compress the highlights of a linear value of at most 4 and apply a gamma of 2.2: a value in [0, 1]."""
    place = min(math.sqrt(max(value, 0.0)) / TABLE_STEP, 2048.0)
    index = int(place)
    return _TONES[index] + (place - index) * (_TONES[index + 1] - _TONES[index])
