"""The tab that chooses splats and changes them: tools, regions by name, direct edits, and the gizmo."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from restage.edit.direct.operations import Delete, Duplicate, Operation, Recolor, Scale, Transform, region_center
from restage.regions.region import Region, combine, grow, shrink
from restage.scenes.cameras import Cameras
from restage.view import pictures
from restage.view.selecting import Point, polygon_mask, region_in_mask, region_size, stroke_mask

__all__ = ["RegionControls", "TOOLS"]

OFF = "off"
TOOLS = {
    OFF: "The mouse turns the scene.",
    "object": "Click at a thing.",
    "brush": "Click or drag to paint what you see.",
    "box": "Drag a box around what you see.",
    "lasso": "Drag around what you see.",
}
"""What each tool asks for."""
WITH_KEYS = "Shift adds to the choice, Alt takes away."
MODIFIERS = {None: "new", "shift": "add", "alt": "take"}
"""What the keys that are held make of a choice."""
NONE_SAVED = "none yet"
PICK_HEIGHT_PX = 360
"""Height of the picture that gestures are read in."""
COPY_SIZES = 2.2
"""How far a copy lies beside what is copied, in sizes of it."""
GIZMO_SIZES = 1.5
SCALER_SIZES = 2.0
"""How far above the center of what is chosen the handle that scales stands, in sizes of it."""
MIN_FACTOR, MAX_FACTOR = 0.05, 20.0


class RegionControls:
    """The tab; its methods are called in the threads of viser."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._path: list[Point] = []  # of the mouse while it is dragged
        self.handles: tuple[Any, ...] = ()
        self._held: Region | None = None  # what the handles are at
        gui = page.server.gui
        self.tool = gui.add_dropdown("Tool", tuple(TOOLS), initial_value=OFF)
        self.tool.on_update(page.handler(lambda _: self.use(self.tool.value)))
        self.said = gui.add_markdown(TOOLS[OFF])
        self.size = gui.add_slider(
            "Size",
            0.5,
            20.0,
            0.5,
            3.0,
            hint="Of the brush, in % of the height; of a step of Grow and Shrink, in % of the distance.",
        )
        self.words = gui.add_text("Words", "", hint="Such as: the red cube")
        self._add_button(gui, "Find", "search", self._find)
        self._add_button(gui, "Floaters", "wind", self._find_floaters)
        self.shape = gui.add_button_group("Choice", ("Grow", "Shrink", "Invert", "None"))
        self.shape.on_click(page.handler(lambda event: self._reshape(event.target.value)))
        self.chosen = gui.add_markdown("")
        self.saved = gui.add_dropdown("Region", (NONE_SAVED,), hint="Regions in the run that fit what is shown.")
        self.saved.on_update(page.handler(lambda event: self._open(event)))
        self.name = gui.add_text("Name", "", hint="Such as: bear")
        save = gui.add_button("Save region", icon="device-floppy")
        save.on_click(page.handler(lambda _: self._save()))
        with gui.add_folder("Change what is chosen"):
            self.color = gui.add_rgb("Color", (214, 170, 40))
            self._add_button(gui, "Recolor", "palette", self.recolor)
            self._add_button(gui, "Delete", "trash", lambda: self.change(Delete()))
            self._add_button(gui, "Remove and fill", "eraser", self.remove)
            self._add_button(gui, "Duplicate", "copy", self.duplicate)
            self.factor = gui.add_number("Factor", 1.2, min=MIN_FACTOR, max=MAX_FACTOR, step=0.05)
            self._add_button(gui, "Scale", "resize", lambda: self.change(Scale(factor=float(self.factor.value))))
            self.moves = gui.add_checkbox(
                "Handles", False, hint="In the scene: arrows and rings move and turn, the arrow above scales."
            )
            self.moves.on_update(page.handler(lambda _: self._update_gizmo()))

    def _add_button(self, gui: Any, label: str, icon: str, act: Any) -> None:
        gui.add_button(label, icon=icon).on_click(self.page.handler(lambda _: act()))

    def use(self, tool: str) -> None:
        """Take up a tool; the scene cannot be turned by dragging while a box is drawn."""
        self.tool.value = tool
        scene = self.page.server.scene
        scene.remove_click_callback()
        scene.remove_rect_select_callback()
        for modifier in MODIFIERS if tool != OFF else ():
            if tool == "box":
                scene.on_rect_select(modifier=modifier)(self.page.handler(self._on_box))
            else:
                scene.on_click(modifier=modifier)(self.page.handler(self._on_click))
        self.page.nodes.show_canvas(self._on_stroke if tool in ("brush", "lasso") else None, tuple(MODIFIERS))
        self.page.nodes.show_frustums(tool == OFF and self.page.controls.are_cameras_shown.value)
        # Said last, once the browser has been told of the tool.
        self.said.content = f"{TOOLS[tool]} {WITH_KEYS}" if tool != OFF else TOOLS[OFF]

    def _camera(self, event: Any) -> Cameras:
        state = event.client.camera
        return pictures.camera_at(
            state.wxyz.tolist(), state.position.tolist(), fov_rad=state.fov, aspect=state.aspect, height=PICK_HEIGHT_PX
        )

    def _on_box(self, event: Any) -> None:
        (left, top), (right, bottom) = event.screen_min, event.screen_max
        camera = self._camera(event)
        mask = polygon_mask(camera, [(left, top), (right, top), (right, bottom), (left, bottom)])
        self._choose_in(camera, mask, event.modifier)

    def _on_click(self, event: Any) -> None:
        camera, session = self._camera(event), self.page.session
        if self.tool.value == "object":
            self.said.content = "Finding what belongs together; the first time in a scene takes some seconds."
            with self.page.following_scene(), session.computing:
                session.choose_object(camera, event.screen_pos, MODIFIERS[event.modifier])
            self.said.content = f"{TOOLS['object']} {WITH_KEYS}"
            self.page.refresh()
        elif self.tool.value == "brush":
            self._choose_in(camera, stroke_mask(camera, [event.screen_pos], self.size.value / 100), event.modifier)

    async def _on_stroke(self, event: Any) -> None:
        """Follow the mouse while it is dragged; viser awaits this, so that events come in their order."""
        if event.phase == "start":
            self._path = [event.start_screen_pos]
        self._path.append(event.end_screen_pos)
        is_over = event.phase == "end"
        self.page.nodes.show_path(None if is_over else self._camera(event), self._path)
        if is_over:
            # Rendering takes too long for the loop that all browsers are served in.
            await asyncio.to_thread(self.page.handler(self._end_stroke), event)

    def _end_stroke(self, event: Any) -> None:
        camera, path = self._camera(event), self._path
        if self.tool.value == "lasso":
            self._choose_in(camera, polygon_mask(camera, path), event.modifier)
        elif self.tool.value == "brush":
            self._choose_in(camera, stroke_mask(camera, path, self.size.value / 100), event.modifier)

    def _choose_in(self, camera: Cameras, mask: torch.Tensor, modifier: str | None) -> None:
        session = self.page.session
        with session.computing:
            region = region_in_mask(session.shown.splats, camera, mask, self.tool.value)
        self.choose(region, modifier)

    def choose(self, region: Region | None, modifier: str | None = None, name: str = "") -> None:
        """Choose splats as the held keys say."""
        self.page.session.select(region, MODIFIERS[modifier], name=name)
        self.page.refresh()

    def _find(self) -> None:
        with self.page.following_scene(), self.page.session.computing:
            self.page.session.choose_by_words(self.words.value)
        self.page.refresh()

    def _find_floaters(self) -> None:
        with self.page.following_scene(), self.page.session.computing:
            self.page.session.choose_floaters()
        self.page.refresh()

    def _reshape(self, how: str) -> None:
        session = self.page.session
        if how == "None":
            return self.choose(None)
        region, splats = session.chosen(), session.shown.splats
        if how == "Invert":
            return self.choose(combine("not", region))
        change = {"Grow": grow, "Shrink": shrink}[how]
        return self.choose(change(region, splats, self.size.value / 100 * self.page.nodes.look_distance))

    def _open(self, event: Any) -> None:
        name = self.saved.value
        if event.client is not None and name != NONE_SAVED and name != self.page.session.selected_name:
            self.page.session.open_region(name)
            self.page.refresh()

    def _save(self) -> None:
        with self.page.following_scene():
            self.page.session.save_region(self.name.value.strip())
        self.page.refresh()

    def recolor(self) -> None:
        """Give what is chosen the color in the panel."""
        red, green, blue = self.color.value[:3]
        self.change(Recolor(towards=f"#{red:02x}{green:02x}{blue:02x}"))

    def duplicate(self) -> None:
        """Put a copy beside what is chosen, as the first view sees it."""
        session = self.page.session
        distance = COPY_SIZES * region_size(session.shown.splats, session.chosen())
        x, y, z = (distance * session.scene.cameras.camera_to_world[0, :3, 0]).tolist()
        self.change(Duplicate(by=(x, y, z)))

    def remove(self) -> None:
        """Take what is chosen away and fill its place, with the steps told under Edit."""
        self.page.session.chosen()
        self.page.start(self.page.session.remove())

    def toggle_gizmo(self) -> None:
        """Show or hide the handles."""
        self.moves.value = not self.moves.value

    def change(self, operation: Operation) -> None:
        """Change what is chosen, show it, and let it be written into the run."""
        self.page.session.change(operation)
        self.page.refresh()
        self.page.start_keeping()

    def refresh(self, regions: Sequence[str]) -> None:
        """Show what is chosen, and the names of the run's regions."""
        session = self.page.session
        region = session.selected
        if region is None:
            self.chosen.content = "Nothing is chosen."
        else:
            count = int(region.inside.sum())
            self.chosen.content = f"**{count:,}** of {len(region.weights):,} splats are chosen."
        names = tuple(regions) or (NONE_SAVED,)
        if names != self.saved.options:
            self.saved.options = names
        self._show_gizmo()

    def load(self) -> None:
        """Take up the tool again in a scene that was built anew, which has no handles yet."""
        self.handles, self._held = (), None
        self.use(self.tool.value)

    def _update_gizmo(self) -> None:
        with self.page.drawing:
            self._show_gizmo()

    def _show_gizmo(self) -> None:
        """Put handles at what is chosen, and take old ones away."""
        region = self.page.session.selected if self.moves.value else None
        self.page.nodes.lift(region)  # again where splats were sent anew since
        if region is self._held:  # they may be in the user's hand
            return
        self._held = region
        for handle in self.handles:
            handle.remove()
        self.handles = ()
        if region is None:
            return
        splats = self.page.session.shown.splats
        center = region_center(splats, region.weights.to(splats.means.device)).cpu().numpy()
        size = region_size(splats, region)
        above = np.array([0.0, 0.0, SCALER_SIZES * size])
        add = self.page.server.scene.add_transform_controls
        look = {"line_width": 4.0, "depth_test": False}
        mover = add("/handles/move", scale=GIZMO_SIZES * size, position=tuple(center), **look)
        mover.on_update(self.page.handler(lambda event: self._drag(event, center)))
        scaler = add(
            "/handles/scale",
            scale=0.5 * GIZMO_SIZES * size,
            position=tuple(center + above),
            active_axes=(False, False, True),
            disable_sliders=True,
            disable_rotations=True,
            **look,
        )
        scaler.on_update(self.page.handler(lambda event: self._drag_scale(event, center, above)))
        self.handles = (mover, scaler)

    def _drag(self, event: Any, center: np.ndarray) -> None:
        self.page.nodes.carry(position=event.target.position, wxyz=event.target.wxyz)
        if event.phase != "end":
            return
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat(event.target.wxyz, scalar_first=True).as_matrix()
        matrix[:3, 3] = np.asarray(event.target.position) - matrix[:3, :3] @ center
        a, b, c, d = ((float(w), float(x), float(y), float(z)) for w, x, y, z in matrix)
        self.change(Transform(matrix=(a, b, c, d)))

    def _drag_scale(self, event: Any, center: np.ndarray, above: np.ndarray) -> None:
        """Scale by how many times as far above the center the handle is as it was."""
        factor = (np.asarray(event.target.position) - center) @ above / (above @ above)
        factor = round(float(np.clip(factor, MIN_FACTOR, MAX_FACTOR)), 3)
        self.page.nodes.carry(scale=factor)
        if event.phase == "end":
            self.change(Scale(factor=factor))
