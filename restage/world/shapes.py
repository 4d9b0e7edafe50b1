"""What things look like: the shapes, paints and lights of the world, and a scene laid out as arrays for tracing.

The tables are in object space: one unit is the size of a normal object, which stands on z = 0 around the z axis.
`pack_scene` and `pack_light` turn a description into what the kernels read.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray as Array

from restage.world.description import PATTERNS, TOWARD_SUN, Description
from restage.world.looks import paint_of
from restage.world.rays import BALL, BOX, COS, ELLIPSOID, FRUSTUM, NUM_SUN_RAYS, ROOF, SIN, UNSCALE

__all__ = ["Light", "PackedScene", "pack_light", "pack_scene"]

_BARK, _CREAM, _COAL, _CARROT = (0.22, 0.12, 0.06), (0.85, 0.76, 0.60), (0.03, 0.03, 0.035), (0.90, 0.30, 0.04)
_SLATE, _GLASS, _DOOR, _CHALK = (0.13, 0.12, 0.14), (0.50, 0.68, 0.80), (0.20, 0.10, 0.05), (0.92, 0.90, 0.86)

_Shape = tuple[int, tuple[float, float, float], tuple[float, float, float], tuple[float, float, float] | None]
# (primitive, center, size, paint; None = the object's own color). Sizes: ellipsoid radii; box half extents;
# frustum (bottom radius, top radius, height) from its center up; roof half extents in x and y, and height.
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
"""Height of the center and radius of a ball around each kind, to 2 %; (0.5, 0.75) where not named."""

_MIDDLES = {"cube": 0.4, "snowman": 0.8, "tree": 0.74, "mushroom": 0.56, "house": 0.31}
"""Height of the place that a pattern is laid around, and a band runs around; 0.5 where not named."""

# Per time: sun radius, sun, ambient from above, sky at the horizon and
# at the top, cloud color and amount, haze. All linear RGB.
_LIGHTS = {
    "noon": (
        0.10, (1.00, 0.95, 0.86), (0.30, 0.37, 0.48),
        (0.52, 0.72, 0.92), (0.09, 0.28, 0.72), (0.95, 0.96, 0.98, 0.60), 0.5,
    ),
    "sunset": (
        0.14, (1.05, 0.62, 0.30), (0.27, 0.20, 0.26),
        (0.95, 0.42, 0.14), (0.22, 0.12, 0.34), (0.90, 0.30, 0.28, 0.50), 0.6,
    ),
    "night": (
        0.10, (0.26, 0.29, 0.40), (0.085, 0.10, 0.17),
        (0.030, 0.050, 0.13), (0.004, 0.007, 0.035), (0.06, 0.08, 0.16, 0.30), 0.5,
    ),
    "fog": (
        0.55, (0.30, 0.30, 0.30), (0.42, 0.43, 0.45),
        (0.62, 0.64, 0.66), (0.55, 0.57, 0.60), (0.6, 0.6, 0.6, 0.0), 1.0,
    ),
}  # fmt: skip


class PackedScene(NamedTuple):
    """The shapes of a scene in world space, as few arrays as can be: each costs time in every call of a kernel."""

    primitives: Float64[Array, "primitives 25"]
    """Columns as named in `rays.py`, as those of `objects`."""
    objects: Float64[Array, "objects 17"]
    sun_rays: Float64[Array, "primitives_and_one rays 3"]
    """Unit directions towards places on the sun in the frame of each primitive, and, last, in world space."""


_Vector = tuple[float, float, float]


class Light(NamedTuple):
    """Sun, sky and haze of one time; colors are linear RGB."""

    toward_sun: _Vector
    """Unit direction to the middle of the sun."""
    sun_slope: float
    """Radius of the sun's disc at a distance of one."""
    mean_sun_ray: _Vector
    """Mean of the unit directions to the places on the sun."""
    sun: _Vector
    ambient: _Vector
    horizon: _Vector
    zenith: _Vector
    cloud: _Vector
    cloud_amount: float
    haze: float


def _bounding_ball(kind: int, size: _Vector) -> tuple[float, float]:
    """Height above the origin and radius of a ball around a primitive at the origin."""
    if kind == ELLIPSOID:
        return 0.0, max(size)
    if kind == BOX:
        return 0.0, math.hypot(*size)
    wide = size[0] if kind == FRUSTUM else math.hypot(size[0], size[1])
    narrow, height = (size[1] if kind == FRUSTUM else size[0]), size[2]
    middle = min(max((height**2 + narrow**2 - wide**2) / (2 * height), 0.0), height)
    return middle, max(math.hypot(wide, middle), math.hypot(narrow, height - middle))


def pack_scene(description: Description) -> PackedScene:
    """Lay the objects of a scene out as arrays."""
    primitives: list[tuple[float, ...]] = []
    objects: list[tuple[float, ...]] = []
    for index, item in enumerate(description.objects):
        start = len(primitives)
        cos, sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
        middle = (item.x, item.y, item.z + item.scale * _MIDDLES.get(item.kind, 0.5))
        pattern = (1 + PATTERNS.index(item.pattern), *paint_of(item.second_color)) if item.pattern else (0,) * 4
        for kind, center, size, paint in _SHAPES[item.kind]:
            x, y, z = (item.scale * value for value in center)
            origin = (item.x + cos * x - sin * y, item.y + sin * x + cos * y, item.z + z)
            lift, radius = _bounding_ball(kind, size)
            ball = (origin[0], origin[1], origin[2] + item.scale * lift, item.scale * radius)
            sizes = [item.scale * value for value in size]
            look = (*ball, *((0,) * 4 if paint else pattern), *middle, 1 / item.scale)
            primitives.append((kind, index, *origin, cos, sin, *sizes, *(paint or paint_of(item.color)), *look))
        height, radius = (value * item.scale for value in _BOUNDS.get(item.kind, (0.5, 0.75)))
        dimmer = (item.x, item.y, item.z + 0.8 * height, 0.8 * radius)
        ball = (item.x, item.y, item.z + height, 1.02 * radius)
        objects.append((start, len(primitives), *dimmer, *(0.0,) * 7, *ball))
    table = np.array(primitives, np.float64).reshape(-1, UNSCALE + 1)
    cos, sin = np.append(table[:, COS], 1.0)[:, None], np.append(table[:, SIN], 0.0)[:, None]
    x, y, z = _sun_rays(description.time, description.sun_turn_rad).T
    return PackedScene(
        primitives=table,
        objects=np.array(objects, np.float64).reshape(-1, BALL + 4),
        sun_rays=np.stack([cos * x + sin * y, cos * y - sin * x, np.broadcast_to(z, (len(cos), len(z)))], -1),
    )


def _toward_sun(time: str, turn_rad: float) -> Float64[Array, " 3"]:
    """Unit direction to the middle of the sun."""
    toward = np.array(TOWARD_SUN[time])
    if turn_rad:
        cos, sin = math.cos(turn_rad), math.sin(turn_rad)
        toward = np.array([cos * toward[0] - sin * toward[1], sin * toward[0] + cos * toward[1], toward[2]])
    return toward / np.linalg.norm(toward)


def _sun_rays(time: str, turn_rad: float) -> Float64[Array, "rays 3"]:
    """Unit directions to places spread evenly over the sun's disc (a sunflower spiral)."""
    direction, radius = _toward_sun(time, turn_rad), _LIGHTS[time][0]
    side = np.cross(direction, (0.0, 0.0, 1.0))
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    index = np.arange(NUM_SUN_RAYS)
    angle, reach = index * math.pi * (3 - math.sqrt(5)), radius * np.sqrt((index + 0.5) / NUM_SUN_RAYS)
    disc = reach[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    rays = direction + disc
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _vector(values: Float64[Array, " 3"]) -> _Vector:
    x, y, z = values.tolist()
    return x, y, z


def pack_light(time: str, turn_rad: float = 0.0) -> Light:
    """Look up the light of a time of day or weather, with the sun turned around the vertical."""
    radius, sun, ambient, horizon, zenith, (*cloud, cloud_amount), haze = _LIGHTS[time]
    return Light(
        toward_sun=_vector(_toward_sun(time, turn_rad)),
        sun_slope=radius,
        mean_sun_ray=_vector(_sun_rays(time, turn_rad).mean(0)),
        sun=sun,
        ambient=ambient,
        horizon=horizon,
        zenith=zenith,
        cloud=_vector(np.array(cloud)),
        cloud_amount=cloud_amount,
        haze=haze,
    )
