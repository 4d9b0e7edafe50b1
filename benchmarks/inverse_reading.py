"""Reads a scene back: what the probe sees in views all around -> one description -> exact renders from the same views.

Where a scene is one thing seen from all sides, some description explains all views; where every view shows another
thing, none does. Positions and sizes are searched for, since the probe reads none; an instrument, no part of a method.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray as Array
from torch import Tensor

from benchmarks.miniature.verdicts import Seen
from miniature.probe_pictures import FIRST_KIND_CLASS, NUM_CELLS
from restage.generate.rig import Rig, azimuth_rad
from restage.scenes.cameras import Cameras
from restage.world.description import KINDS, SIZES, Description, SceneObject
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.render import View, cast_rays, render_view

__all__ = ["FACED", "ReadScene", "faces_shown", "is_two_faced", "read_scene"]

FACED = ("house", "snowman")
"""Kinds that look different from behind: only these can have two faces."""
SCALES = (0.7, 0.8, 0.9, 1.0, 1.12, 1.25, 1.4)
"""Units of the rig in units of the world that are tried: a generated scene has no scale of its own."""
NUM_YAWS = 16
FACING_RAD = math.radians(120)
"""Two views that both show a face and are this far apart show two faces."""
MAX_OBJECTS = 3


class ReadScene(NamedTuple):
    """What was read, and how well it explains the views."""

    description: Description | None  # None where no object is seen in most of the views
    views: list[View]  # its exact renders
    iou: float
    """Mean over views and objects of the intersection over union of the read cells and those of the render; 0 where
    nothing was read."""
    scale: float
    """Units of the world in one unit of the rig."""


def most(words: Sequence[str]) -> str:
    """The most frequent word."""
    return Counter(words).most_common(1)[0][0]


def read_scene(
    seen: Sequence[Seen],
    classes: Int64[Tensor, "n 16 16"],
    images: Float[Tensor, "n 3 h w"],
    cameras: Cameras,
    *,
    target_height: float = Rig.target_height,
) -> ReadScene:
    """Find the description that explains readings of views best, and render it."""
    kinds = [kind for kind in KINDS if sum(kind in one.colors for one in seen) > len(seen) / 2][:MAX_OBJECTS]
    if not kinds:
        return ReadScene(None, [], 0.0, 1.0)
    colors = {kind: most([one.colors[kind] for one in seen if kind in one.colors]) for kind in kinds}
    ground, time = most([one.ground for one in seen]), most([one.time for one in seen])
    cells = {kind: (classes == FIRST_KIND_CLASS + KINDS.index(kind)).numpy() for kind in kinds}
    best: tuple[float, Description | None, float] = (-1.0, None, 1.0)
    for scale in SCALES:
        scaled = scaled_cameras(cameras, scale, target_height)
        places = {kind: place_of(cells[kind], scaled) for kind in kinds}
        for sizes in itertools.product(SIZES, repeat=len(kinds)):
            objects = tuple(
                SceneObject(kind=kind, color=colors[kind], size=size, x=places[kind][0], y=places[kind][1])
                for kind, size in zip(kinds, sizes, strict=True)
            )
            found = Description(objects=objects, ground=ground, time=time)
            iou = iou_of(found, cells, scaled)
            if iou > best[0]:
                best = (iou, found, scale)
    _, description, scale = best
    assert description is not None
    scaled = scaled_cameras(cameras, scale, target_height)
    for index in range(len(kinds)):
        description = turned(description, index, images, scaled)
    iou = iou_of(description, cells, scaled)
    views = [render_view(description, scaled[view]) for view in range(len(scaled))]
    return ReadScene(description, views, iou, scale)


def scaled_cameras(cameras: Cameras, scale: float, target_height: float) -> Cameras:
    """The same views of a scene whose units are `scale` times as many; the middle that they look at stays."""
    poses = cameras.camera_to_world.clone()
    middle = torch.tensor([0.0, 0.0, target_height])
    poses[:, :3, 3] = middle + scale * (poses[:, :3, 3] - middle)
    return replace(cameras, camera_to_world=poses)


def place_of(cells: Array, cameras: Cameras) -> tuple[float, float]:
    """Where the vertical planes through the middles of an object's cells meet, by least squares; 0, 0 without any."""
    normals, offsets = [], []
    for view in range(len(cameras)):
        columns = np.nonzero(cells[view])[1]
        if not len(columns):
            continue
        side = (columns.mean() + 0.5) / NUM_CELLS * cameras.width
        intrinsics = cameras.intrinsics[view].numpy()
        ray = cameras.camera_to_world[view, :3, :3].numpy() @ [(side - intrinsics[0, 2]) / intrinsics[0, 0], 0.0, 1.0]
        normal = np.array([-ray[1], ray[0]]) / max(math.hypot(ray[0], ray[1]), 1e-9)
        normals.append(normal)
        offsets.append(normal @ cameras.positions[view, :2].numpy())
    if len(normals) < 2:
        return 0.0, 0.0
    x, y = np.linalg.lstsq(np.array(normals), np.array(offsets), rcond=None)[0]
    return round(float(np.clip(x, -3, 3)), 4), round(float(np.clip(y, -3, 3)), 4)


def iou_of(description: Description, cells: dict[str, Array], cameras: Cameras) -> float:
    """Mean over views and objects of the intersection over union of their cells; both empty counts as right."""
    step = cameras.width / NUM_CELLS
    grid = (np.stack(np.meshgrid(np.arange(NUM_CELLS), np.arange(NUM_CELLS)), axis=-1) + 0.5) * step
    values = []
    for view in range(len(cameras)):
        ids = cast_rays(description, cameras[view], grid.reshape(-1, 2).astype(np.float64)).object_ids
        for index, item in enumerate(description.objects):
            mine = (ids == FIRST_OBJECT_ID + index).reshape(NUM_CELLS, NUM_CELLS)
            union = int((mine | cells[item.kind][view]).sum())
            values.append(int((mine & cells[item.kind][view]).sum()) / union if union else 1.0)
    return float(np.mean(values))


def with_yaw(description: Description, index: int, yaw_rad: float) -> Description:
    """The same scene with one object turned."""
    item = replace(description.objects[index], yaw_rad=yaw_rad)
    return replace(description, objects=(*description.objects[:index], item, *description.objects[index + 1 :]))


def error_inside(description: Description, index: int, image: Float[Tensor, "3 h w"], camera: Cameras) -> float:
    """Mean absolute difference of a view from an exact render, where the render shows an object; 0 where it hides."""
    small = camera.to_size(64, 64)
    view = render_view(description, small)
    shown = torch.nn.functional.interpolate(image[None], (64, 64), mode="area")[0].numpy()
    inside = view.object_ids == FIRST_OBJECT_ID + index
    return float(np.abs(view.image - shown).mean(0)[inside].mean()) if inside.any() else 0.0


def turned(description: Description, index: int, images: Float[Tensor, "n 3 h w"], cameras: Cameras) -> Description:
    """The scene with one object turned as the views show it best, where turning it makes a difference."""
    if description.objects[index].kind not in (*FACED, "cube"):
        return description
    yaws = [math.tau * number / NUM_YAWS for number in range(NUM_YAWS)]
    options = [with_yaw(description, index, yaw) for yaw in yaws]
    views = range(len(cameras))
    return min(options, key=lambda one: sum(error_inside(one, index, images[v], cameras[v]) for v in views))


def faces_shown(read: ReadScene, index: int, images: Float[Tensor, "n 3 h w"], cameras: Cameras) -> list[bool]:
    """In which views an object looks rather as it does from its front than as it does from behind.

    Only what tells these two apart counts: the view is compared along the difference of their exact renders, at half of
    which it would be as near to one as to the other.
    """
    assert read.description is not None
    found = []
    for view in range(len(cameras)):
        camera = scaled_cameras(cameras[view], read.scale, Rig.target_height).to_size(64, 64)
        # The front of an object that is not turned looks along -y.
        facing = azimuth_rad(camera) + math.pi / 2
        front, back = (
            render_view(with_yaw(read.description, index, yaw), camera).image for yaw in (facing, facing + math.pi)
        )
        shown = torch.nn.functional.interpolate(images[view : view + 1], (64, 64), mode="area")[0].numpy()
        difference = front - back
        along = float(((shown - back) * difference).sum() / max(float((difference**2).sum()), 1e-9))
        found.append(along > 0.5)
    return found


def is_two_faced(shown: Sequence[bool], cameras: Cameras) -> bool:
    """Whether views that show a face stand too far apart for it to be one."""
    angles = [azimuth_rad(cameras[view]) for view, is_shown in enumerate(shown) if is_shown]
    between = [abs(math.remainder(a - b, math.tau)) for a, b in itertools.combinations(angles, 2)]
    return max(between, default=0.0) >= FACING_RAD
