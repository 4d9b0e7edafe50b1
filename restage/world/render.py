"""Ray-traced pictures of scene descriptions: description + camera -> image, depth, object ids.

Every surface is hit analytically and is matte, so that a point has one color from everywhere. The sky is a dome at
a finite distance and the haze depends on the place and not on the camera: a splat scene can hold all of it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from numpy import ndarray as Array

from restage.diffusion.conditions import Conditions, invert_depth, slots_of
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.world.description import GROUNDS, Description
from restage.world.kernels import DOME_RADIUS, GROUND_ID, SKY_ID, count_pixels, look_at_pixels, render_pixels
from restage.world.rays import BALL
from restage.world.shapes import PackedScene, pack_light, pack_scene

__all__ = ["DOME_RADIUS", "GROUND_ID", "NEAR", "SKY_ID", "Surfaces", "View", "cast_rays", "count_object_pixels"]
__all__ += ["layout_of", "render_view"]

NEAR = 1.5
"""z depth, in world units, whose inverse depth counts as 1 in conditions: cameras stand hardly nearer to anything."""


class View(NamedTuple):
    """What one camera sees."""

    image: Float32[Array, "3 height width"]
    """RGB in [0, 1]."""
    depth: Float32[Array, "height width"]
    """z in the camera frame at the pixel's center, world units."""
    object_ids: Int32[Array, "height width"]
    """What the pixel's center shows: sky, ground, or an object."""


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

    z = 0 is the ground; the camera (n = 1) stands inside the dome.

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
    light = pack_light(description.time, description.sun_turn_rad)
    render_pixels(scene, light, GROUNDS.index(description.ground), boxes, *packed, image, depth, ids)
    return View(image=image, depth=depth, object_ids=ids)


def layout_of(view: View, order: Sequence[int] | None = None) -> Conditions:
    """Return the exact depth and ids of a view as conditions; `order` says the slot of each object of the scene."""
    depth, ids = torch.from_numpy(view.depth), torch.from_numpy(view.object_ids).long()
    return {"depth": invert_depth(depth, NEAR), "ids": slots_of(ids, order)}


class Surfaces(NamedTuple):
    """What single rays meet."""

    depths: Float64[Array, " n"]
    """z in the camera frame, world units."""
    object_ids: Int64[Array, " n"]


def cast_rays(description: Description, camera: Cameras, pixels: Float64[Array, "n 2"]) -> Surfaces:
    """Find what lies at any places on the image of one camera, in pixels from its left and upper edge."""
    packed, scene = _pack_camera(camera), pack_scene(description)
    found = Surfaces(np.empty(len(pixels)), np.empty(len(pixels), np.int64))
    look_at_pixels(scene, _image_boxes(scene, packed), *packed, np.ascontiguousarray(pixels), *found)
    return found


def count_object_pixels(description: Description, camera: Cameras) -> Int64[Array, "objects 2"]:
    """Count the pixels whose center shows each object: among the others, and if it stood there alone.

    Casts one ray a pixel and shades nothing, so a small camera answers in a fraction of a millisecond.
    """
    packed, scene = _pack_camera(camera), pack_scene(description)
    counts = np.zeros((len(description.objects), 2), np.int64)
    count_pixels(scene, _image_boxes(scene, packed), *packed, camera.width, camera.height, counts)
    return counts
