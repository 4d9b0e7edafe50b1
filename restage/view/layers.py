"""What the page shows: splats and the cameras to click at in 3D, or pictures for the camera of each browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from restage.edit.direct.operations import region_center
from restage.regions.region import Region
from restage.scenes.cameras import Cameras
from restage.scenes.splats import Splats
from restage.view import pictures

__all__ = ["Backgrounds", "PICTURE_LAYERS", "SPLAT_LAYERS", "SceneNodes"]

TRAIN_RGB, HELD_OUT_RGB = (38, 166, 142), (240, 138, 36)
MARK_RGB = (255, 140, 26)
PATH_SHARE = 0.02
"""How far before the camera the path of the mouse is drawn, as a share of its distance from the scene."""
CANVAS_DISTANCES = 100.0
"""Radius of the ball that the mouse draws on, in distances of the cameras from the scene."""
FRUSTUM_SHARE = 0.07
"""Size of a frustum as a share of the cameras' mean distance from their middle."""


class SceneNodes:
    """Splats and frustums on a viser server."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.splats: dict[str, Any] = {}
        self.frustums: dict[int, Any] = {}
        self.shown: Splats | None = None
        self._marked: Region | None = None
        self._lifted: Region | None = None
        self._stood_at: int | None = None
        self._are_frustums_shown = True
        self.look_distance = 1.0

    def load(self) -> None:
        """Build the scene that the session has chosen."""
        scene = self.page.server.scene
        scene.reset()
        self.frustums, self._stood_at = {}, None
        before = pictures.splat_arrays(self.page.session.before)
        self.splats = {layer: scene.add_gaussian_splats(f"/splats/{layer}", *before) for layer in ("before", "edited")}
        self.shown, self._marked, self._lifted = self.page.session.before, None, None
        cameras = self.page.session.scene.cameras
        self._add_frustums(cameras)
        self._place_first_camera(cameras)

    def _place_first_camera(self, cameras: Cameras) -> None:
        """Let new browsers start at the first view, upright as the capture is."""
        center = self.page.session.before.means.median(dim=0).values
        self.look_distance = float((cameras.positions - center).norm(dim=1).median().clamp_min(1e-3))
        up = -cameras.camera_to_world[:, :3, 1].mean(dim=0)
        self.page.server.scene.set_up_direction(tuple(float(value) for value in up / up.norm().clamp_min(1e-6)))
        first = self.page.server.initial_camera
        first.position = tuple(cameras.positions[0].tolist())
        first.look_at = tuple(self._target(cameras, 0).tolist())
        first.fov = pictures.vertical_fov_rad(cameras, 0)
        self.stand_at(0)

    def _target(self, cameras: Cameras, index: int) -> torch.Tensor:
        """The point that a view looks at, for the mouse to turn around."""
        return cameras.positions[index] + self.look_distance * cameras.camera_to_world[index, :3, 2]

    def _add_frustums(self, cameras: Cameras) -> None:
        capture = self.page.session.scene.capture
        if capture is None:
            return
        size = FRUSTUM_SHARE * float((cameras.positions - cameras.positions.mean(dim=0)).norm(dim=1).mean())
        for index in range(len(cameras)):
            matrix = cameras.camera_to_world[index].double().numpy()
            frustum = self.page.server.scene.add_camera_frustum(
                f"/cameras/{index:05d}",
                fov=pictures.vertical_fov_rad(cameras, index),
                aspect=cameras.width / cameras.height,
                scale=max(size, 1e-3),
                thickness=1.5,
                thickness_units="screen",
                variant="filled",  # all of it can be clicked at, not the lines alone
                color=HELD_OUT_RGB if index in capture.held_out_indices else TRAIN_RGB,
                wxyz=Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True),
                position=matrix[:3, 3],
                cast_shadow=False,
                receive_shadow=False,
            )
            frustum.on_click(self.page.handler(lambda event, view=index: self.page.go_to_view(view, event.client)))
            self.frustums[index] = frustum

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

    def show_splats(self, splats: Splats, marked: Region | None = None) -> None:
        """Send splats to the layer `edited`, with those of a region marked by their color."""
        if splats is not self.shown or marked is not self._marked:
            self.shown, self._marked, self._lifted = splats, marked, None
            self._send(splats)

    def lift(self, region: Region | None) -> None:
        """Draw the splats of a region as a node of its own, which can be carried at once; None puts them back."""
        if region is not self._lifted and self.shown is not None:
            self._lifted = region
            self._send(self.shown)

    def _send(self, splats: Splats) -> None:
        arrays, lifted = pictures.splat_arrays(splats), self._lifted
        if self._marked is not None:
            arrays = arrays._replace(rgbs=pictures.mark(arrays.rgbs, self._marked.weights.numpy()))
        if "lifted" in self.splats:
            self.splats.pop("lifted").remove()
        if lifted is None:
            return self.splats["edited"].set_gaussians(*arrays)
        inside = lifted.inside.numpy()
        self.splats["edited"].set_gaussians(*(array[~inside] for array in arrays))
        center = region_center(splats, lifted.weights.to(splats.means.device)).cpu().numpy()
        part = pictures.SplatArrays(*(array[inside] for array in arrays))
        self.splats["lifted"] = self.page.server.scene.add_gaussian_splats(
            "/splats/lifted", *part._replace(centers=part.centers - center), position=center
        )
        return self.show_layer(self.page.layer)

    def carry(self, **placed: Any) -> None:
        """Move the lifted splats: `position`, `wxyz`, `scale`."""
        if "lifted" in self.splats:
            for name, value in placed.items():
                setattr(self.splats["lifted"], name, value)

    def show_canvas(self, on_stroke: Callable[[Any], Any] | None, modifiers: Sequence[str | None]) -> None:
        """Have the mouse draw where it is dragged, instead of turning the scene; None gives it back.

        viser tells how the mouse is dragged on a thing of the scene only: here a ball around everything, unseen.
        """
        scene = self.page.server.scene
        scene.remove_by_name("/canvas")
        if on_stroke is None:
            return
        canvas = scene.add_icosphere(
            "/canvas",
            radius=CANVAS_DISTANCES * self.look_distance,
            opacity=0.0,
            side="double",
            cast_shadow=False,
            receive_shadow=False,
        )
        for modifier in modifiers:
            canvas.on_drag("left", modifier=modifier)(on_stroke)

    def show_path(self, camera: Cameras | None, corners: Sequence[tuple[float, float]]) -> None:
        """Draw a path just before a camera, by shares of its picture; no camera takes it away."""
        scene = self.page.server.scene
        if camera is None or len(corners) < 2:
            scene.remove_by_name("/path")
            return
        pixels = torch.tensor(corners) * torch.tensor([camera.width, camera.height])
        focal, center = camera.intrinsics[0, [0, 1], [0, 1]], camera.intrinsics[0, :2, 2]
        rays = torch.cat([(pixels - center) / focal, torch.ones(len(corners), 1)], dim=1)
        depth = PATH_SHARE * self.look_distance
        points = camera.positions + depth * rays @ camera.camera_to_world[0, :3, :3].T
        segments = torch.stack([points[:-1], points[1:]], dim=1).numpy()
        scene.add_line_segments("/path", segments, colors=MARK_RGB, thickness=2.0, thickness_units="screen")

    def show_layer(self, layer: str) -> None:
        """Show the splats of a layer, or none for a layer of pictures."""
        for name, node in self.splats.items():
            node.visible = name == layer or (name == "lifted" and layer == "edited")
        self.show_frustums(self._are_frustums_shown)

    def move_camera(self, client: Any, index: int) -> None:
        """Put a browser's camera where a view was taken, so that the window shows all of it."""
        cameras = self.page.session.scene.capture.cameras
        matrix = cameras.camera_to_world[index].double().numpy()
        with client.atomic():
            client.camera.fov = pictures.view_camera(cameras, index, client.camera.aspect)
            client.camera.position = matrix[:3, 3]
            client.camera.look_at = np.asarray(self._target(cameras, index).tolist())
            client.camera.wxyz = Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True)
        client.flush()


SPLAT_LAYERS = ("before", "edited")
PICTURE_LAYERS = ("split", "photograph", "truth", "mask", "difference")
HEIGHT_PX = 270
"""Of the pictures; the browser enlarges them."""
BLACK = np.zeros((2, 2, 3), np.uint8)
"""What fits are made over, so that the splats look in the browser as they do in pictures."""


class Backgrounds:
    """Keeps the background of every browser what its layer and camera ask for, in one thread."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._wanted = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="backgrounds", daemon=True)
        self._thread.start()

    def follow(self, client: Any) -> None:
        """Look after a browser that has just connected."""
        client.camera.on_update(lambda _: self.request() if self.page.layer in PICTURE_LAYERS else None)
        client.scene.set_background_image(BLACK, format="png")
        self.request()

    def request(self) -> None:
        """Ask for new backgrounds soon; requests that come close together are one."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        self._wanted.set()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        is_black: set[int] = set()
        while True:
            self._wanted.wait()
            self._wanted.clear()  # before the work: what is asked for meanwhile is done in another turn
            if self._is_closed:
                return
            for number, client in self.page.server.get_clients().items():
                layer = self.page.layer
                if layer in SPLAT_LAYERS and number in is_black:
                    continue
                with self.page.errors_shown(client):
                    picture, said = (BLACK, "") if layer in SPLAT_LAYERS else self._picture(client.camera, layer)
                    client.scene.set_background_image(picture, format="png")
                    self.page.controls.say(said)
                (is_black.add if layer in SPLAT_LAYERS else is_black.discard)(number)

    def _picture(self, state: Any, layer: str) -> tuple[np.ndarray, str]:
        """The picture of a layer and a line that says what it is."""
        session = self.page.session
        camera = pictures.camera_at(
            state.wxyz.tolist(), state.position.tolist(), fov_rad=state.fov, aspect=state.aspect, height=HEIGHT_PX
        )
        with session.computing:
            if layer in ("photograph", "truth"):
                return self._of_view(layer, camera, state.aspect)
            if layer == "split":
                at = self.page.controls.split.value / 100
                picture = pictures.render_split(session.before, self.page.nodes.shown, camera, at)
                return picture, "Before on the left, edited on the right."
            if layer == "difference":
                picture = pictures.render_difference(session.before, self.page.nodes.shown, camera)
                return picture, "How far colors move: black not at all, bright by half of the range or more."
            return self._mask(camera, state.aspect)

    def _of_view(self, layer: str, camera: Cameras, aspect: float) -> tuple[np.ndarray, str]:
        scene, case = self.page.session.scene, self.page.session.case
        if scene.capture is None:
            return BLACK, "These splats come without views."
        if layer == "truth" and case is None:
            return BLACK, "No truth is known for this scene."
        index = pictures.nearest_view(scene.capture.cameras, camera)
        what = "Photograph" if layer == "photograph" else f"Truth of “{scene.cases[case].request.instruction}”"
        picture = pictures.view_picture(scene, index, case if layer == "truth" else None)
        said = f"{what}, the view nearest to your camera: {scene.capture.file_names[index]}"
        return pictures.letterbox(picture, aspect), said

    def _mask(self, camera: Cameras, aspect: float) -> tuple[np.ndarray, str]:
        scene, case, edited = self.page.session.scene, self.page.session.case, self.page.nodes.shown
        index = None if scene.capture is None else pictures.standing_at(scene.capture.cameras, camera)
        if scene.capture is None or index is None or case is None:
            said = "Green changes."
            if case is not None:
                said += " At a view of the capture it is compared with the truth: choose one."
            return pictures.render_mask(scene, edited, camera), said
        picture = pictures.render_mask(scene, edited, scene.capture.cameras[index], case=case)
        said = "Green changes as in truth, orange changes though it should not, violet should change and does not."
        return pictures.letterbox(picture, aspect), said
