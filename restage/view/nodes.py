"""The 3D part of the page: splats before and after, and the capture's cameras to click at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from restage.scenes.cameras import Cameras
from restage.scenes.splats import Splats
from restage.view.pictures import splat_arrays, vertical_fov_rad, view_camera
from restage.view.video import path_cameras

__all__ = ["SceneNodes"]

TRAIN_RGB, HELD_OUT_RGB = (38, 166, 142), (240, 138, 36)
FRUSTUM_SHARE = 0.07
"""Size of a frustum as a share of the cameras' mean distance from their middle."""
FIRST_STEP = 0.8
"""Share of the first view's distance that a new browser starts at, so that no frustum is in its way."""


class SceneNodes:
    """Splats and frustums on a viser server."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.splats: dict[str, Any] = {}
        self.frustums: dict[int, Any] = {}
        self.shown: Splats | None = None
        self._stood_at: int | None = None
        self._are_frustums_shown = True
        self._look_distance = 1.0

    def load(self) -> None:
        """Build the scene that the session has chosen."""
        scene = self.page.server.scene
        scene.reset()
        self.frustums, self._stood_at = {}, None
        before = splat_arrays(self.page.session.before)
        self.splats = {layer: scene.add_gaussian_splats(f"/splats/{layer}", *before) for layer in ("before", "edited")}
        self.shown = self.page.session.before
        cameras = self._cameras()
        self._add_frustums(cameras)
        self._place_first_camera(cameras)

    def _cameras(self) -> Cameras:
        capture = self.page.session.scene.capture
        return path_cameras(self.page.session.scene, "orbit", num_frames=8) if capture is None else capture.cameras

    def _place_first_camera(self, cameras: Cameras) -> None:
        """Let new browsers start before the first view, upright as the capture is."""
        center = self.page.session.before.means.median(dim=0).values
        self._look_distance = float((cameras.positions - center).norm(dim=1).median().clamp_min(1e-3))
        up = -cameras.camera_to_world[:, :3, 1].mean(dim=0)
        self.page.server.scene.set_up_direction(tuple(float(value) for value in up / up.norm().clamp_min(1e-6)))
        first = self.page.server.initial_camera
        target = self._target(cameras, 0)
        first.position = tuple((target + FIRST_STEP * (cameras.positions[0] - target)).tolist())
        first.look_at = tuple(target.tolist())
        first.fov = vertical_fov_rad(cameras, 0)

    def _target(self, cameras: Cameras, index: int) -> torch.Tensor:
        """The point that a view looks at, for the mouse to turn around."""
        return cameras.positions[index] + self._look_distance * cameras.camera_to_world[index, :3, 2]

    def _add_frustums(self, cameras: Cameras) -> None:
        capture = self.page.session.scene.capture
        if capture is None:
            return
        size = FRUSTUM_SHARE * float((cameras.positions - cameras.positions.mean(dim=0)).norm(dim=1).mean())
        for index in range(len(cameras)):
            matrix = cameras.camera_to_world[index].double().numpy()
            frustum = self.page.server.scene.add_camera_frustum(
                f"/cameras/{index:05d}",
                fov=vertical_fov_rad(cameras, index),
                aspect=cameras.width / cameras.height,
                scale=max(size, 1e-3),
                thickness=1.5,
                thickness_units="screen",
                variant="filled",  # all of it can be clicked at, not the lines alone
                color=self._color(index),
                wxyz=Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True),
                position=matrix[:3, 3],
                cast_shadow=False,
                receive_shadow=False,
            )
            frustum.on_click(self.page.handler(lambda event, view=index: self.page.go_to_view(view, event.client)))
            self.frustums[index] = frustum

    def _color(self, index: int) -> tuple[int, int, int]:
        return HELD_OUT_RGB if index in self.page.session.scene.capture.held_out_indices else TRAIN_RGB

    def show_frustums(self, is_visible: bool) -> None:
        """Show or hide the cameras; over pictures they are always hidden."""
        self._are_frustums_shown = is_visible
        is_now_visible = is_visible and any(node.visible for node in self.splats.values())
        for index, frustum in self.frustums.items():
            frustum.visible = is_now_visible and index != self._stood_at

    def stand_at(self, index: int) -> None:
        """Take the frustum of the view that is stood at out of the way, and bring back the one before."""
        self._stood_at = index
        self.show_frustums(self._are_frustums_shown)

    def show_splats(self, splats: Splats) -> None:
        """Send splats to the layer `edited`."""
        if splats is not self.shown:
            self.splats["edited"].set_gaussians(*splat_arrays(splats))
        self.shown = splats

    def show_layer(self, layer: str) -> None:
        """Show the splats of a layer, or none for a layer of pictures."""
        for name, node in self.splats.items():
            node.visible = name == layer
        self.show_frustums(self._are_frustums_shown)

    def move_camera(self, client: Any, index: int) -> None:
        """Put a browser's camera where a view was taken, so that the window shows all of it."""
        cameras = self.page.session.scene.capture.cameras
        matrix = cameras.camera_to_world[index].double().numpy()
        with client.atomic():
            client.camera.fov = view_camera(cameras, index, client.camera.aspect)
            client.camera.position = matrix[:3, 3]
            client.camera.look_at = np.asarray(self._target(cameras, index).tolist())
            client.camera.wxyz = Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True)
        client.flush()
