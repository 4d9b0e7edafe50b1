"""The viewer's page in a browser, what tests do with it, and methods that are done at once or never."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from restage.edit.job import EditJob, EditStep
from restage.scenes.cameras import project_points
from restage.scenes.splats import SH_C0
from restage.view import ViewSession
from restage.view.pictures import camera_at

PATIENCE_S = 200
VISERS_OWN = (
    "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN",
    "Unable to preventDefault inside passive event listener invocation.",
)
"""What viser 1.1 itself logs for any scene with splats, and where the mouse is dragged on a thing of the scene."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Asks the editor for one view and paints all splats with its mean colour where it changes, step by step."""

    num_steps: int = 4

    def run(self, job: EditJob) -> Iterator[EditStep]:
        edited = job.editor.edit(job.batch([0], noise_level=1.0, seed=job.seed))
        inside = edited.masks[0] > 0.5
        color = edited.images[0][:, inside].mean(dim=1)
        splats = job.splats.clone()
        for step in range(1, self.num_steps + 1):
            splats.sh = splats.sh + (((color - 0.5) / SH_C0) - splats.sh) * (step / self.num_steps)
            yield EditStep(step, self.num_steps, 0.1, splats.clone(), "painting")


@dataclass(frozen=True, kw_only=True)
class Endless:
    """Never comes to an end by itself; makes the scene a little brighter with each step."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        splats = job.splats.clone()
        for step in range(1, 1_000_000):
            time.sleep(0.01)
            splats.sh = splats.sh + 1e-4
            yield EditStep(step, 1_000_000, 0.5, splats, "going on and on")


class Shown:
    """The page as a user has it."""

    def __init__(self, page: Any, session: ViewSession, viewer: Any, pictures: Path) -> None:
        self.page, self.session, self.viewer, self.pictures = page, session, viewer, pictures

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Let the browser work until something is so."""
        end_s = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < end_s, f"waited {PATIENCE_S} s in vain for: {what}"
            self.page.wait_for_timeout(100)

    def picture(self, name: str) -> np.ndarray:
        """A screenshot, also kept in the test's folder."""
        content = self.page.screenshot(path=self.pictures / f"{name}.png", timeout=1000 * PATIENCE_S)
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def wait_for_color(self, channel: int, name: str) -> None:
        """Wait until the ball in the middle of the scene has most of this channel."""

        def is_so() -> bool:
            pixels = self.picture(name)[100:380, 60:420].reshape(-1, 3)
            vivid = pixels[pixels.max(axis=1) - pixels.min(axis=1) > 60]
            return len(vivid) > 500 and (vivid.argmax(axis=1) == channel).mean() > 0.8

        self.wait_for(is_so, f"a ball of channel {channel} in {name}.png")

    def drag(self, *places: tuple[float, float]) -> None:
        """Drag the mouse along places of the window."""
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=3)
            self.page.wait_for_timeout(300)
        self.page.mouse.up()

    def camera(self) -> tuple[float, ...]:
        """Where the browser's camera is and how it is turned."""
        (client,) = self.viewer.server.get_clients().values()
        return (*client.camera.position.tolist(), *client.camera.wxyz.tolist())

    def type_in(self, label: str, text: str) -> None:
        self.page.locator(f"label:text-is('{label}')").locator("xpath=ancestor::div[3]").locator("input").fill(text)

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def pixel_of(self, *point: float) -> tuple[float, float]:
        """Where a point of the world is in the window."""
        (client,) = self.viewer.server.get_clients().values()
        state, size = client.camera, self.page.viewport_size
        camera = camera_at(
            state.wxyz.tolist(),
            state.position.tolist(),
            fov_rad=state.fov,
            aspect=state.aspect,
            height=size["height"],
        )
        x, y = project_points(torch.tensor([point]), camera).pixels[0].tolist()
        return x, y

    def color_at(self, *point: float) -> np.ndarray:
        """Mean color where a point of the world is, RGB in [0, 255]."""
        x, y = map(round, self.pixel_of(*point))
        return self.picture("color")[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(axis=0)

    def wait_for_text(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()
