"""Clips of a scene: cameras along a path, rendered frame by frame into an mp4 that browsers play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from restage.edit.pictures import FRAMES_PER_SECOND, write_video
from restage.edit.results import orbit_cameras
from restage.records import InputError, Progress
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats
from restage.view.scene import ViewScene

__all__ = ["FRAMES_PER_SECOND", "MAX_FRAMES", "PATHS", "path_cameras", "render_clip"]

MAX_FRAMES = 300
MAX_SIDE_PX = 512
PLAIN_SIDE_PX = 320
PLAIN_FOV_RAD = 0.9


def path_cameras(scene: ViewScene, kind: str, *, num_frames: int, side_px: int | None = None) -> Cameras:
    """Cameras along a path around or through a scene.

    The longer side is `side_px`, at most `MAX_SIDE_PX`; by default the capture's, if that is not more. A scene without
    a capture knows only the orbit.

    Raises:
        InputError: no such path, or numbers out of range.
    """
    if kind not in PATHS:
        raise InputError(f"unknown path {kind!r}; choose from {', '.join(PATHS)}")
    if not 2 <= num_frames <= MAX_FRAMES:
        raise InputError(f"expected 2 to {MAX_FRAMES} frames, got {num_frames}; {FRAMES_PER_SECOND} make a second")
    if scene.capture is None:
        if kind != "orbit":
            raise InputError(f"{scene.name} has no training views to follow; choose the orbit")
        cameras = _plain_orbit(scene.splats, num_frames)
    else:
        cameras = PATHS[kind](scene.capture, num_frames)
    return _of_side(cameras, side_px)


def render_clip(
    splats: Splats, cameras: Cameras, path: Path, *, computing: AbstractContextManager[Any] | None = None
) -> Iterator[Progress]:
    """Render every camera and write the clip, which is there once the last step is.

    `computing` is held while a frame is rendered.
    """
    frames = []
    for index in range(len(cameras)):
        with computing or nullcontext():
            frames.append(render_views(splats, cameras[index])[0])
        yield Progress(stage="view", done=index + 1, total=len(cameras) + 1, note="rendering the clip")
    write_video(path, torch.stack(frames))
    yield Progress(stage="view", done=len(cameras) + 1, total=len(cameras) + 1, note=str(path))


def _through_training_cameras(capture: Capture, num_frames: int) -> Cameras:
    """A smooth path through the training cameras, in their order."""
    cameras = capture.cameras[list(capture.train_indices)]
    if len(cameras) < 2:
        raise InputError(f"{capture.name}: expected at least 2 training views to go through, got {len(cameras)}")
    times, wanted = np.arange(len(cameras)), np.linspace(0, len(cameras) - 1, num_frames)
    poses = cameras.camera_to_world.double().numpy()
    matrices = np.tile(np.eye(4), (num_frames, 1, 1))
    matrices[:, :3, :3] = RotationSpline(times, Rotation.from_matrix(poses[:, :3, :3]))(wanted).as_matrix()
    matrices[:, :3, 3] = CubicSpline(times, poses[:, :3, 3])(wanted)
    intrinsics = cameras.intrinsics[:1].expand(num_frames, 3, 3).contiguous()
    return Cameras(torch.from_numpy(matrices).float(), intrinsics, cameras.width, cameras.height)


PATHS: dict[str, Callable[[Capture, int], Cameras]] = {
    "orbit": orbit_cameras,
    "training cameras": _through_training_cameras,
}


def _plain_orbit(splats: Splats, num_frames: int) -> Cameras:
    """A circle around splats that come without cameras, wide enough for nine tenths of them."""
    target = splats.means.detach().median(dim=0).values
    reach = float((splats.means.detach() - target).norm(dim=1).quantile(0.9)) if len(splats) else 1.0
    poses = orbit(num_frames, 2.2 * reach + 1e-3, height=float(target[2]) + 0.8 * reach, target=target)
    intrinsics = intrinsics_from_fov(PLAIN_FOV_RAD, PLAIN_SIDE_PX, PLAIN_SIDE_PX)
    return Cameras(poses, intrinsics.expand(num_frames, 3, 3).contiguous(), PLAIN_SIDE_PX, PLAIN_SIDE_PX)


def _of_side(cameras: Cameras, side_px: int | None) -> Cameras:
    """The same cameras with this longer side, and even sides, which the codec needs."""
    if side_px is not None and not 16 <= side_px <= MAX_SIDE_PX:
        raise InputError(f"expected a side from 16 to {MAX_SIDE_PX} px, got {side_px}")
    own_px = max(cameras.width, cameras.height)
    scale = (side_px or min(own_px, MAX_SIDE_PX)) / own_px
    width, height = (max(2, round(side * scale / 2) * 2) for side in (cameras.width, cameras.height))
    return cameras.to_size(width, height)
