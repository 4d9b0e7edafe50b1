"""Layers that are pictures: rendered small for the camera of each browser, anew whenever it moves."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from restage.scenes.cameras import Cameras
from restage.view.pictures import (
    camera_at,
    letterbox,
    nearest_view,
    render_difference,
    render_mask,
    standing_at,
    view_picture,
)

__all__ = ["PICTURE_LAYERS", "SPLAT_LAYERS", "Backgrounds"]

SPLAT_LAYERS = ("before", "edited")
PICTURE_LAYERS = ("photograph", "truth", "mask", "difference")
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
        camera = camera_at(
            state.wxyz.tolist(), state.position.tolist(), fov_rad=state.fov, aspect=state.aspect, height=HEIGHT_PX
        )
        with session.computing:
            if layer in ("photograph", "truth"):
                return self._of_view(layer, camera, state.aspect)
            if layer == "difference":
                picture = render_difference(session.before, self.page.nodes.shown, camera)
                return picture, "How far colors move: black not at all, bright by half of the range or more."
            return self._mask(camera, state.aspect)

    def _of_view(self, layer: str, camera: Cameras, aspect: float) -> tuple[np.ndarray, str]:
        scene, case = self.page.session.scene, self.page.session.case
        if scene.capture is None:
            return BLACK, "These splats come without views."
        if layer == "truth" and case is None:
            return BLACK, "No truth is known for this scene."
        index = nearest_view(scene.capture.cameras, camera)
        what = "Photograph" if layer == "photograph" else f"Truth of “{scene.cases[case].request.instruction}”"
        picture = view_picture(scene, index, case if layer == "truth" else None)
        return letterbox(picture, aspect), f"{what}, the view nearest to your camera: {scene.capture.file_names[index]}"

    def _mask(self, camera: Cameras, aspect: float) -> tuple[np.ndarray, str]:
        scene, case, edited = self.page.session.scene, self.page.session.case, self.page.nodes.shown
        index = None if scene.capture is None else standing_at(scene.capture.cameras, camera)
        if scene.capture is None or index is None or case is None:
            said = "Green changes."
            if case is not None:
                said += " At a view of the capture it is compared with the truth: choose one."
            return render_mask(scene, edited, camera), said
        picture = render_mask(scene, edited, scene.capture.cameras[index], case=case)
        said = "Green changes as in truth, orange changes though it should not, violet should change and does not."
        return letterbox(picture, aspect), said
