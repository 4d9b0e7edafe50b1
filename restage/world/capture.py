"""Captures of the procedural world: cameras around a scene, their views, sparse points, and the truth after an edit."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray as Array
from torch import Tensor

from restage.records import derive_seed
from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at
from restage.scenes.capture import Capture
from restage.world import second
from restage.world.description import Description, Edit
from restage.world.places import holds
from restage.world.render import View, count_object_pixels, render_view

__all__ = ["PicturedEdit", "Truth", "camera_at", "change_mask", "clearness_of", "make_capture", "make_truth"]
__all__ += ["middle_height", "ring_cameras", "sample_camera", "sample_pictured_edit", "scene_radius", "shown_together"]

FIELD_OF_VIEW_RAD = math.radians(46)
CHANGE_THRESHOLD = 3 / 255
"""A pixel counts as changed where some channel differs by more: below it lies what 8 bits and rounding do."""

MIN_SHOWN_SHARE = 0.35
"""Share of the pixels an object would cover alone that must stay visible."""
MIN_COVERAGE = 0.012
"""Share of the picture that each object has to cover."""
MAX_CAMERA_TRIES = 8
ROOM_AROUND = 1.15
"""How much farther off cameras are that leave room for what is added or moved to the edge of a scene."""
PROBE_SIZE = 32
"""Width and height, in pixels, of the pictures in which a camera is tried out."""


class Truth(NamedTuple):
    """Exact pictures after an edit, from the cameras of a capture."""

    images: Float[Tensor, "n 3 h w"]
    masks: Float[Tensor, "n h w"]
    """1 where the edit changes the picture, shadows included."""


def camera_at(
    angle_rad: float, elevation_rad: float, radius: float, size: int, *, target_height: float = 0.5
) -> Cameras:
    """Place a camera that looks at the middle of a scene, by its direction from there and its distance."""
    target = torch.tensor([0.0, 0.0, target_height])
    level = radius * math.cos(elevation_rad)
    eye = target + torch.tensor(
        [level * math.cos(angle_rad), level * math.sin(angle_rad), radius * math.sin(elevation_rad)]
    )
    intrinsics = intrinsics_from_fov(FIELD_OF_VIEW_RAD, size, size)
    return Cameras(look_at(eye, target)[None], intrinsics[None], size, size)


def scene_radius(description: Description) -> float:
    """Return the distance, in world units, from which all objects are well in view."""
    reach = max(math.hypot(o.x, o.y) + 0.55 * o.scale for o in description.objects)
    tall = max(o.z + 1.25 * o.scale for o in description.objects)
    return 1.55 + 1.45 * max(reach, 0.75 * tall)


def middle_height(description: Description) -> float:
    """Return the height, in world units, that cameras look at: higher where one object stands on another."""
    return max([0.5, *(0.4 * (o.z + 1.25 * o.scale) for o in description.objects if o.z > 0)])


def shown_together(*scenes: Description) -> Description:
    """Return the first scene with the objects of all: what cameras choose their place for that have to show each."""
    objects = dict.fromkeys(item for scene in scenes for item in scene.objects)
    return replace(scenes[0], objects=tuple(objects))


def sample_camera(description: Description, seed: int, *, size: int = 128) -> Cameras:
    """Sample one camera in whose picture every object can be recognized, for pictures that need no second view.

    An object that hides behind another would make the caption wrong, so cameras are drawn until each object shows
    `MIN_SHOWN_SHARE` of what it would show alone and covers `MIN_COVERAGE` of the picture. Where none of
    `MAX_CAMERA_TRIES` does, the one that comes closest is taken.
    """
    rng = np.random.default_rng(derive_seed("camera", seed))
    best, best_clearness = None, -1.0
    for _ in range(MAX_CAMERA_TRIES):
        radius = scene_radius(description) * rng.uniform(0.95, 1.12)
        angle, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(10, 27))
        camera = camera_at(angle, elevation, radius, size, target_height=middle_height(description))
        clearness = clearness_of(description, camera)
        if clearness > best_clearness:
            best, best_clearness = camera, clearness
        if clearness >= 1:
            break
    assert best is not None
    return best


def clearness_of(description: Description, camera: Cameras) -> float:
    """Return how far the worst seen object meets both minima: 1 or more where all do, 0 where one is hidden."""
    counts = count_object_pixels(description, camera.to_size(PROBE_SIZE, PROBE_SIZE))
    shown_share = counts[:, 0] / np.maximum(counts[:, 1], 1)
    coverage = counts[:, 0] / PROBE_SIZE**2
    return float(np.minimum(shown_share / MIN_SHOWN_SHARE, coverage / MIN_COVERAGE).min())


class PicturedEdit(NamedTuple):
    """An edit as one picture shows it."""

    edit: Edit
    camera: Cameras
    """Shows the scene before and after well; n = 1."""


def sample_pictured_edit(kind: str, seed: int, *, split: str = "train", size: int = 128) -> PicturedEdit:
    """Sample an edit of the second edition for a single picture, whose place may be left or right of something."""
    for draw in itertools.count():
        item = derive_seed("pictured edit", seed, draw)
        scene = second.sample_description(item, split=split)
        camera = sample_camera(scene, item, size=size)
        if kind in second.possible_kinds(scene, camera):
            edit = second.sample_edit(scene, item, kind=kind, split=split, camera=camera)
            # Farther away where the scene after is larger, and mostly in the same direction.
            camera = sample_camera(shown_together(edit.before, edit.after), item, size=size)
            is_true = edit.place is None or holds(edit.place, edit.after, camera)
            if is_true and clearness_of(edit.before, camera) >= 1 and clearness_of(edit.after, camera) >= 1:
                return PicturedEdit(edit, camera)
    raise AssertionError("a count does not end")


def ring_cameras(description: Description, num_views: int, *, seed: int, size: int = 128, room: float = 1.0) -> Cameras:
    """Place cameras around the scene: angles evenly spaced, heights and distances varied, `room` times as far away."""
    rng = np.random.default_rng(derive_seed("ring", seed))
    start = rng.uniform(0, 2 * math.pi)
    radius = room * scene_radius(description)
    cameras = [
        camera_at(
            start + 2 * math.pi * i / num_views,
            math.radians((11, 20, 26, 15)[i % 4] + rng.uniform(-1.5, 1.5)),
            radius * rng.uniform(0.97, 1.08),
            size,
            target_height=middle_height(description),
        )
        for i in range(num_views)
    ]
    return Cameras(
        torch.cat([c.camera_to_world for c in cameras]), torch.cat([c.intrinsics for c in cameras]), size, size
    )


def _sparse_points(views: list[View], cameras: Cameras, count: int, seed: int) -> tuple[Array, Array]:
    """Pick pixels of the views and lift them by depth, as structure from motion would have found them."""
    rng = np.random.default_rng(derive_seed("points", seed))
    points, colors = [], []
    for index, view in enumerate(views):
        chosen = rng.integers(0, view.depth.size, count // len(views))
        v, u = np.divmod(chosen, cameras.width)
        intrinsics = cameras.intrinsics[index].numpy()
        depth = view.depth[v, u]
        x = (u + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0] * depth
        y = (v + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1] * depth
        matrix = cameras.camera_to_world[index].numpy()
        points.append(np.stack([x, y, depth], 1) @ matrix[:3, :3].T + matrix[:3, 3])
        colors.append(view.image[:, v, u].T)
    return np.concatenate(points).astype(np.float32), np.concatenate(colors).astype(np.float32)


def make_capture(
    description: Description,
    *,
    name: str,
    seed: int,
    num_views: int = 40,
    held_out_every: int = 5,
    size: int = 128,
    num_points: int = 6000,
    framed: Description | None = None,
) -> Capture:
    """Capture a scene with cameras all around it.

    The seed chooses angles, heights and points, which are taken from training views only; `num_views` counts held-out
    views, too, of which every n-th is one. Cameras leave room for `framed`, by default the scene.
    """
    room = ROOM_AROUND if framed is not None else 1.0
    cameras = ring_cameras(framed or description, num_views, seed=seed, size=size, room=room)
    views = [render_view(description, cameras[i]) for i in range(num_views)]
    held_out = tuple(range(held_out_every // 2, num_views, held_out_every))
    train = tuple(i for i in range(num_views) if i not in held_out)
    points, colors = _sparse_points([views[i] for i in train], cameras[train], num_points, seed)
    return Capture(
        name=name,
        cameras=cameras,
        images=torch.from_numpy(np.stack([view.image for view in views])),
        file_names=tuple(f"view_{i:03d}.png" for i in range(num_views)),
        points=torch.from_numpy(points),
        point_colors=torch.from_numpy(colors),
        train_indices=train,
        held_out_indices=held_out,
    )


def change_mask(before: Float32[Array, "3 h w"], after: Float32[Array, "3 h w"]) -> Float32[Array, "h w"]:
    """Return 1 where two exact pictures differ by more than rounding."""
    return (np.abs(after - before).max(0) > CHANGE_THRESHOLD).astype(np.float32)


def make_truth(edit: Edit, cameras: Cameras) -> Truth:
    """Render the scene before and after an edit from each camera, for the exact pictures and what they change."""
    images, masks = [], []
    for index in range(len(cameras)):
        before = render_view(edit.before, cameras[index]).image
        after = render_view(edit.after, cameras[index]).image
        images.append(after)
        masks.append(change_mask(before, after))
    return Truth(images=torch.from_numpy(np.stack(images)), masks=torch.from_numpy(np.stack(masks)))
