"""Pictures of the viewer: what it shows as an image, from the camera of whoever looks, and splats as it sends them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from restage.compare.metrics import CHANGE_THRESHOLD
from restage.edit.pictures import FRAMES_PER_SECOND, read_image, read_mask, write_video
from restage.edit.results import orbit_cameras
from restage.records import InputError, Progress
from restage.run.layout import TRUTH
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.io.images import to_uint8
from restage.scenes.splats import SH_C0, Splats, rotation_matrices
from restage.scores.overlays import change_map, mask_overlay
from restage.view.scene import ViewScene

__all__ = ["FRAMES_PER_SECOND", "MAX_FRAMES", "PATHS", "SplatArrays", "camera_at", "letterbox", "nearest_view"]
__all__ += ["mark", "path_cameras", "render_clip", "render_difference", "render_mask", "render_split", "splat_arrays"]
__all__ += ["standing_at", "vertical_fov_rad", "view_camera", "view_picture"]

BRIGHTEST_CHANGE = 0.5

Picture = UInt8[np.ndarray, "height width 3"]


class SplatArrays(NamedTuple):
    """Splats as viser takes them."""

    centers: Float[np.ndarray, "n 3"]
    covariances: Float[np.ndarray, "n 3 3"]
    rgbs: Float[np.ndarray, "n 3"]
    opacities: Float[np.ndarray, "n 1"]


def splat_arrays(splats: Splats) -> SplatArrays:
    """Turn splats into what the browser draws: colors in [0, 1], those of the harmonics' degree 0."""
    splats = splats.detach().to("cpu")
    axes = rotation_matrices(splats.rotations) * splats.log_scales.exp()[:, None]
    return SplatArrays(
        splats.means.numpy(),
        (axes @ axes.transpose(1, 2)).numpy(),
        (0.5 + SH_C0 * splats.sh[:, 0]).clamp(0, 1).numpy(),
        splats.opacity_logits.sigmoid()[:, None].numpy(),
    )


MARK_RGB = np.array([1.0, 0.55, 0.1])
MARK_SHARE = 0.55


def mark(rgbs: Float[np.ndarray, "n 3"], weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Color splats as far as they belong to a region."""
    share = MARK_SHARE * weights[:, None]
    return (1 - share) * rgbs + share * MARK_RGB


def camera_at(
    wxyz: Sequence[float], position: Sequence[float], *, fov_rad: float, aspect: float, height: int
) -> Cameras:
    """The camera of a browser window.

    `wxyz` is its rotation to world axes (camera axes are OpenCV's), the field of view vertical, the height in pixels.
    """
    width = max(1, round(height * aspect))
    camera_to_world = torch.eye(4)
    camera_to_world[:3, :3] = rotation_matrices(torch.tensor([list(wxyz)], dtype=torch.float32))[0]
    camera_to_world[:3, 3] = torch.tensor(list(position), dtype=torch.float32)
    horizontal_rad = 2 * math.atan(math.tan(fov_rad / 2) * width / height)
    return Cameras(camera_to_world[None], intrinsics_from_fov(horizontal_rad, width, height)[None], width, height)


def vertical_fov_rad(cameras: Cameras, index: int) -> float:
    """Angle that the height of a view spans."""
    return 2 * math.atan(cameras.height / (2 * float(cameras.intrinsics[index, 1, 1])))


def view_camera(cameras: Cameras, index: int, aspect: float) -> float:
    """Vertical field of view in radians at which a window of this aspect shows all of a view."""
    fov_rad, own_aspect = vertical_fov_rad(cameras, index), cameras.width / cameras.height
    return fov_rad if aspect >= own_aspect else 2 * math.atan(math.tan(fov_rad / 2) * own_aspect / aspect)


def nearest_view(cameras: Cameras, camera: Cameras) -> int:
    """Index of the view that stands and looks most like a camera (n = 1)."""
    spread = (cameras.positions - cameras.positions.mean(dim=0)).norm(dim=1).mean().clamp_min(1e-6)
    distances = (cameras.positions - camera.positions).norm(dim=1) / spread
    turned = 1 - (cameras.camera_to_world[:, :3, 2] * camera.camera_to_world[:, :3, 2]).sum(dim=1)
    return int((distances + turned).argmin())


def standing_at(cameras: Cameras, camera: Cameras) -> int | None:
    """Index of the view that a camera stands at, within 1 % of the cameras' spread and one degree; None if at none."""
    index = nearest_view(cameras, camera)
    spread = float((cameras.positions - cameras.positions.mean(dim=0)).norm(dim=1).mean())
    is_here = float((cameras.positions[index] - camera.positions[0]).norm()) <= 0.01 * max(spread, 1e-6)
    axes, own = cameras.camera_to_world[index, :3, :3], camera.camera_to_world[0, :3, :3]
    is_turned_alike = bool(((axes * own).sum(dim=0) > math.cos(math.radians(1.0))).all())
    return index if is_here and is_turned_alike else None


def letterbox(picture: Picture, aspect: float) -> UInt8[np.ndarray, "full_height full_width 3"]:
    """Put a picture in the middle of a black one of another aspect (width over height), as large as it fits."""
    height, width = picture.shape[:2]
    full_height = max(height, round(width / aspect))
    full_width = max(width, round(height * aspect))
    full = np.zeros((full_height, full_width, 3), np.uint8)
    top, left = (full_height - height) // 2, (full_width - width) // 2
    full[top : top + height, left : left + width] = picture
    return full


def view_picture(scene: ViewScene, index: int, case: str | None = None) -> Picture:
    """The photograph of a view, or its true picture after an edit."""
    assert scene.capture is not None
    if case is None:
        return to_uint8(scene.capture.images[index])
    return to_uint8(read_image(_truth_path(scene, case, "images", index)))


def render_difference(before: Splats, edited: Splats, camera: Cameras) -> Picture:
    """How much each pixel changes, from black (not at all) to bright (by half of the range or more)."""
    import matplotlib  # takes half a second, which only this layer should cost

    change = change_map(*_render_both(before, edited, camera))
    return np.asarray(matplotlib.colormaps["magma"](change / BRIGHTEST_CHANGE, bytes=True)[..., :3])


def render_split(before: Splats, edited: Splats, camera: Cameras, at: float) -> Picture:
    """The scene before up to a share `at` of the width, and edited from there on, with a line between."""
    picture, edited_uint8 = (part.copy() for part in _render_both(before, edited, camera))
    column = round(at * camera.width)
    picture[:, column:] = edited_uint8[:, column:]
    if 0 < column < camera.width:
        picture[:, column] = 255
    return picture


def render_mask(scene: ViewScene, edited: Splats, camera: Cameras, *, case: str | None = None) -> Picture:
    """Which pixels change, over the scene in grey; where truth is known at this camera, also where that is right.

    With `case`, an edit whose truth is known, the camera has to be one of the capture's own.
    """
    before_uint8, edited_uint8 = _render_both(scene.splats, edited, camera)
    should_change = None
    if case is not None and scene.capture is not None:
        index = standing_at(scene.capture.cameras, camera)
        if index is not None and (camera.width, camera.height) == scene.capture.images.shape[:1:-1]:
            should_change = (read_mask(_truth_path(scene, case, "masks", index)) > 0.5).numpy()
    return mask_overlay(before_uint8, change_map(before_uint8, edited_uint8) > CHANGE_THRESHOLD, should_change)


def _render_both(before: Splats, edited: Splats, camera: Cameras) -> tuple[Picture, Picture]:
    return to_uint8(render_views(before, camera)[0]), to_uint8(render_views(edited, camera)[0])


def _truth_path(scene: ViewScene, case: str, kind: str, index: int) -> Path:
    assert scene.folder is not None and scene.capture is not None
    return scene.folder / TRUTH / case / kind / Path(scene.capture.file_names[index]).with_suffix(".png").name


MAX_FRAMES = 300
MAX_SIDE_PX = 512
PLAIN_SIDE_PX = 320
PLAIN_FOV_RAD = 0.9


def path_cameras(scene: ViewScene, kind: str, *, num_frames: int) -> Cameras:
    """Cameras along a path around or through a scene, with sides of at most `MAX_SIDE_PX`.

    A scene without a capture knows only the orbit.
    """
    if kind not in PATHS:
        raise InputError(f"unknown path {kind!r}; choose from {', '.join(PATHS)}")
    if not 2 <= num_frames <= MAX_FRAMES:
        raise InputError(f"expected 2 to {MAX_FRAMES} frames, got {num_frames}; {FRAMES_PER_SECOND:g} make a second")
    if scene.capture is None:
        if kind != "orbit":
            raise InputError(f"{scene.name} has no training views to follow; choose the orbit")
        cameras = _plain_orbit(scene.splats, num_frames)
    else:
        cameras = PATHS[kind](scene.capture, num_frames)
    scale = min(1.0, MAX_SIDE_PX / max(cameras.width, cameras.height))
    # The codec needs even sides.
    return cameras.to_size(*(max(2, round(side * scale / 2) * 2) for side in (cameras.width, cameras.height)))


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
    means = splats.means.detach().cpu()
    target = means.median(dim=0).values
    reach = float((means - target).norm(dim=1).quantile(0.9)) if len(splats) else 1.0
    poses = orbit(num_frames, 2.2 * reach + 1e-3, height=float(target[2]) + 0.8 * reach, target=target)
    intrinsics = intrinsics_from_fov(PLAIN_FOV_RAD, PLAIN_SIDE_PX, PLAIN_SIDE_PX)
    return Cameras(poses, intrinsics.expand(num_frames, 3, 3).contiguous(), PLAIN_SIDE_PX, PLAIN_SIDE_PX)
