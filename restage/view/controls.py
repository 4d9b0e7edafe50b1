"""The controls of the viewer's page: what to show, what to edit, the history, and what to take along."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restage.edit.editors import EDITORS
from restage.edit.job import EditStep, Method, needs_editor
from restage.edit.methods import METHODS
from restage.edit.single import EditChoice
from restage.records import EditRequest, InputError
from restage.scenes.io.splat_files import SPLAT_FORMATS
from restage.view.layers import PICTURE_LAYERS, SPLAT_LAYERS
from restage.view.new_scene import NewSceneControls
from restage.view.pictures import FRAMES_PER_SECOND, MAX_FRAMES, PATHS, path_cameras, render_clip, view_picture
from restage.view.reference_control import ReferenceControl
from restage.view.region_controls import RegionControls
from restage.view.scene import KeptEdit
from restage.view.shortcuts import add_shortcuts, show_help

__all__ = ["Controls", "SettingsForm", "escape_markdown", "field_hints", "parse_numbers"]


class SettingsForm:
    """Inputs for the settings of one method at a time; settings of kinds that have no input keep their defaults."""

    def __init__(self, gui: Any, folder: Any) -> None:
        """Make a form in a folder of a `viser` GUI."""
        self._gui, self._folder = gui, folder
        self._method = ""
        self._inputs: dict[str, Any] = {}

    def load(self, method: str) -> None:
        """Show the settings of a method at their defaults."""
        for shown in self._inputs.values():
            shown.remove()
        defaults: Any = METHODS[method]()
        hints = field_hints(METHODS[method])
        self._method, self._inputs = method, {}
        with self._folder:
            for field in dataclasses.fields(defaults):
                added = self._add(field.name, getattr(defaults, field.name), hints.get(field.name))
                if added is not None:
                    self._inputs[field.name] = added

    def _add(self, name: str, value: object, hint: str | None) -> Any:
        label = name.removeprefix("is_").replace("_", " ")
        if isinstance(value, bool):
            return self._gui.add_checkbox(label, value, hint=hint)
        if isinstance(value, int):
            return self._gui.add_number(label, value, step=1, hint=hint)
        if isinstance(value, float):
            return self._gui.add_number(label, value, step=0.01, hint=hint)
        if isinstance(value, str):
            return self._gui.add_text(label, value, hint=hint)
        if isinstance(value, tuple) and value and all(isinstance(item, float) for item in value):
            return self._gui.add_text(label, ", ".join(f"{item:g}" for item in value), hint=hint)
        return None

    def read(self) -> Method:
        """The settings as they stand."""
        defaults: Any = METHODS[self._method]()
        values = {}
        for name, shown in self._inputs.items():
            default = getattr(defaults, name)
            value = parse_numbers(name, shown.value) if isinstance(default, tuple) else type(default)(shown.value)
            values[name] = value
        return dataclasses.replace(defaults, **values)


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Read numbers with commas between."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{name}: expected numbers with commas between, such as 1.0, 0.6, got {text!r}") from None


def field_hints(record: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, by field name; without those that have none."""
    names = "|".join(field.name for field in dataclasses.fields(record))  # pyright: ignore[reportArgumentType]
    source = "".join(inspect.getsource(kind) for kind in reversed(record.__mro__) if dataclasses.is_dataclass(kind))
    found = re.findall(rf'^    ({names}):[^\n]*\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


OWN_WORDS = "my own words"
EVERYWHERE = "everywhere"
NO_ANCHOR = "none"
NOTHING_KEPT = "none yet"


def escape_markdown(text: str) -> str:
    """Write text so that it is shown as it is, where viser would show markdown and run the HTML in it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


class Controls:
    """The panel; its methods are called in the threads of viser and of the running edit."""

    def __init__(self, page: Any) -> None:
        self.page = page
        gui = page.server.gui
        self.header = gui.add_markdown("")
        scenes = tuple(page.session.scenes)
        self.scene = gui.add_dropdown("Scene", scenes, initial_value=page.session.scene.name, visible=len(scenes) > 1)
        self.scene.on_update(self._handler(self._choose_scene))
        self.layer = gui.add_dropdown("Show", (*SPLAT_LAYERS, *PICTURE_LAYERS), initial_value=page.layer)
        self.layer.on_update(self._handler(lambda _: self._show_layer()))
        self.split = gui.add_slider("Split at", 0, 100, 1, 50, visible=False, hint="In % of the width.")
        self.split.on_update(self._handler(lambda _: page.backgrounds.request()))
        self.said = gui.add_markdown("", visible=False)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Edit"):
            self._add_edit(gui)
        with tabs.add_tab("Region"):
            self.region = RegionControls(page)
        with tabs.add_tab("Views"):
            self._add_views(gui)
        with tabs.add_tab("History"):
            self._add_history(gui)
        with tabs.add_tab("Save"):
            self._add_save(gui)
        with tabs.add_tab("New"):
            self.new_scene = NewSceneControls(page)
        gui.add_button("Help (H)", icon="help").on_click(self._handler(lambda _: show_help(self)))
        add_shortcuts(self)

    def _handler(self, act: Callable[[Any], None]) -> Callable[[Any], None]:
        return self.page.handler(act)

    def _add_edit(self, gui: Any) -> None:
        self.why_not = gui.add_markdown("", visible=False)
        self.example = gui.add_dropdown("Example", (OWN_WORDS,), visible=False, hint="Edits whose truth is known.")
        self.example.on_update(self._handler(lambda _: self._fill_example()))
        self.instruction = gui.add_text("Instruction", "", hint="Such as: make the cube blue")
        self.method = gui.add_dropdown(
            "Method", tuple(name for name, method in METHODS.items() if needs_editor(method)), initial_value="restage"
        )
        self.method.on_update(self._handler(lambda _: self.settings.load(self.method.value)))
        self.editor = gui.add_dropdown("Editor", tuple(EDITORS), initial_value="edit_model")
        self.seed = gui.add_number("Seed", 0, min=0, step=1)
        self.region_of_edit = gui.add_dropdown(
            "Where", (EVERYWHERE,), hint="Where the scene may change: regions of the run, which Region makes."
        )
        self.is_chained = gui.add_checkbox("On top", False, hint="Else from the scene before any edit.")
        self.reference = ReferenceControl(self.page)
        with gui.add_folder("Captions and settings", expand_by_default=False) as more:
            self.source_caption = gui.add_text("Before", "", hint="What is to be seen before; some editors use it.")
            self.target_caption = gui.add_text("After", "", hint="What is to be seen after.")
            self.anchor = gui.add_dropdown(
                "Anchor", (NO_ANCHOR,), hint="The view that is edited first, and shown to the editor with all others."
            )
        self.settings = SettingsForm(gui, more)
        self.settings.load(self.method.value)
        self.start = gui.add_button("Edit", icon="player-play")
        self.start.on_click(self._handler(lambda _: self._start()))
        self.stop = gui.add_button("Stop", icon="player-stop", color="red", disabled=True)
        self.stop.on_click(self._handler(lambda _: self._stop()))
        self.bar = gui.add_progress_bar(0.0, visible=False)
        self.status = gui.add_markdown("")

    def _add_views(self, gui: Any) -> None:
        self.are_cameras_shown = gui.add_checkbox("Show cameras", True)
        self.are_cameras_shown.on_update(
            self._handler(lambda _: self.page.nodes.show_frustums(self.are_cameras_shown.value))
        )
        self.view = gui.add_dropdown("Go to", ("none",))
        self.view.on_update(self._handler(self._choose_view))
        self.photograph = gui.add_image(np.zeros((2, 2, 3), np.uint8), label="Photograph", format="png", visible=False)
        self.views_note = gui.add_markdown("Click a camera in the scene, or choose one here, to see from there.")

    def _add_history(self, gui: Any) -> None:
        self.history = gui.add_markdown("")
        self.kept_note = gui.add_markdown("", visible=False)
        self.undo = gui.add_button("Undo", icon="arrow-back-up")
        self.undo.on_click(self._handler(lambda _: self.travel(self.page.session.undo)))
        self.redo = gui.add_button("Redo", icon="arrow-forward-up")
        self.redo.on_click(self._handler(lambda _: self.travel(self.page.session.redo)))
        self.version_name = gui.add_text(
            "Call it", "", hint="A name for the version that is shown; empty takes it away."
        )
        name = gui.add_button("Name", icon="tag")
        name.on_click(self._handler(lambda _: self._name_version()))
        self.kept = gui.add_dropdown("Kept", (NOTHING_KEPT,), hint="Finished edits of this scene in the run folder.")
        self.open = gui.add_button("Open", icon="folder-open")
        self.open.on_click(self._handler(lambda _: self._open_kept()))

    def _add_save(self, gui: Any) -> None:
        self.splat_format = gui.add_dropdown(
            "Format", tuple(form.suffix for form in SPLAT_FORMATS.values()), initial_value=".ply"
        )
        save = gui.add_button("Save splats", icon="download")
        save.on_click(self._handler(self._save_splats))
        self.path = gui.add_dropdown("Path", tuple(PATHS))
        self.seconds = gui.add_number("Seconds", 4.0, min=1, max=MAX_FRAMES // FRAMES_PER_SECOND, step=0.5)
        self.clip = gui.add_button("Save clip (mp4)", icon="movie")
        self.clip.on_click(self._handler(self._save_clip))
        self.clip_bar = gui.add_progress_bar(0.0, visible=False)

    def load(self) -> None:
        """Fit the controls to the scene that the session has chosen."""
        session, scene = self.page.session, self.page.session.scene
        self.region.load()
        self.reference.show(())
        if tuple(session.scenes) != self.scene.options:
            self.scene.options = tuple(session.scenes)
        self.scene.value, self.scene.visible = scene.name, len(session.scenes) > 1
        facts = [f"{len(scene.splats):,} splats"]
        if scene.capture is not None:
            facts.append(f"{len(scene.capture.cameras)} views")
        if scene.fit is not None and scene.fit.held_out_psnr_db is not None:
            facts.append(f"{scene.fit.held_out_psnr_db:.1f} dB on held-out views")
        self.header.content = f"**{escape_markdown(scene.name)}**: {', '.join(facts)}"
        self.why_not.content, self.why_not.visible = session.why_not_edit, bool(session.why_not_edit)
        self.start.disabled = bool(session.why_not_edit)
        instructions = tuple(dict.fromkeys(case.request.instruction for case in scene.cases.values()))
        self.example.options, self.example.visible = (OWN_WORDS, *instructions), bool(instructions)
        is_there = {"photograph": scene.capture is not None, "truth": bool(scene.cases)}
        self.layer.options = (*SPLAT_LAYERS, *(layer for layer in PICTURE_LAYERS if is_there.get(layer, True)))
        names = () if scene.capture is None else scene.capture.file_names
        self.view.options = ("none", *names)
        train = () if scene.capture is None else tuple(names[view] for view in scene.capture.train_indices)
        self.anchor.options = (NO_ANCHOR, "auto", *train)
        self.photograph.visible = False
        self.path.options = tuple(PATHS) if scene.capture is not None else ("orbit",)
        self.is_chained.value = False

    def refresh(self) -> None:
        """Show the session's history."""
        session = self.page.session
        labels = [escape_markdown(version.label) for version in session.versions]
        labels[session.position] = f"**{labels[session.position]}**"
        self.history.content = "\n".join(f"{number}. {label}" for number, label in enumerate(labels, 1))
        is_busy = session.is_running
        self.undo.disabled, self.redo.disabled = is_busy or not session.can_undo, is_busy or not session.can_redo
        labels = tuple(self._kept_by_label()) or (NOTHING_KEPT,)
        if labels != self.kept.options:
            self.kept.options = labels
        self.open.disabled = is_busy or labels == (NOTHING_KEPT,)
        regions = session.regions()
        if (EVERYWHERE, *regions) != self.region_of_edit.options:
            self.region_of_edit.options = (EVERYWHERE, *regions)
        self.region.refresh(regions)

    def say(self, text: str) -> None:
        """Say what the layer shows; empty for nothing."""
        content = escape_markdown(text)
        if content != self.said.content:
            self.said.content, self.said.visible = content, bool(content)

    def choose_layer(self, layer: str) -> None:
        """Switch the layer as if the user had."""
        self.layer.value = layer

    def toggle_layer(self, layer: str) -> None:
        """Switch to a layer, or from it to what is edited."""
        self.choose_layer("edited" if self.page.layer == layer else layer)

    def say_kept(self, text: str) -> None:
        """Say how far direct edits have been written."""
        self.kept_note.content, self.kept_note.visible = escape_markdown(text), True

    def show_view(self, index: int) -> None:
        """Show the photograph of a view in the panel."""
        capture = self.page.session.scene.capture
        name = capture.file_names[index]
        kind = "held out: no method sees it" if index in capture.held_out_indices else "training view"
        picture = view_picture(self.page.session.scene, index)
        self.photograph.image, self.photograph.visible = picture, True
        self.views_note.content = f"{escape_markdown(name)}, {kind}"
        if self.view.value != name:
            self.view.value = name

    def _show_layer(self) -> None:
        self.split.visible = self.layer.value == "split"
        self.page.show_layer(self.layer.value)

    def _choose_scene(self, event: Any) -> None:
        if self.scene.value == self.page.session.scene.name:
            return
        try:
            self.page.session.choose_scene(self.scene.value)
        finally:
            self.scene.value = self.page.session.scene.name
        self.page.load_scene()

    def _choose_view(self, event: Any) -> None:
        capture = self.page.session.scene.capture
        if event.client is not None and capture is not None and self.view.value in capture.file_names:
            self.page.go_to_view(capture.file_names.index(self.view.value), event.client)

    def _fill_example(self) -> None:
        for case in self.page.session.scene.cases.values():
            if case.request.instruction == self.example.value:
                self.instruction.value = case.request.instruction
                self.source_caption.value = case.request.source_caption
                self.target_caption.value = case.request.target_caption
                self.reference.show(case.request.references)

    def _start(self) -> None:
        request = EditRequest(
            instruction=self.instruction.value,
            source_caption=self.source_caption.value,
            target_caption=self.target_caption.value,
            references=self.reference.references,
        )
        region, anchor, capture = self.region_of_edit.value, self.anchor.value, self.page.session.scene.capture
        if capture is not None and anchor in capture.file_names:
            anchor = str(capture.file_names.index(anchor))
        choice = EditChoice(
            method=self.method.value,
            editor=self.editor.value,
            seed=int(self.seed.value),
            settings=self.settings.read(),
            region=None if region == EVERYWHERE else Path(region),
            anchor="" if anchor == NO_ANCHOR else anchor,
        )
        self.page.start_edit(request, choice, is_chained=self.is_chained.value)

    def begin_edit(self) -> None:
        """Show that an edit begins."""
        self.start.label = "Editing"
        self.stop.disabled = False
        self.bar.value, self.bar.animated, self.bar.visible = 0.0, True, True
        self.status.content = "Opening scene and editor."
        self.undo.disabled = self.redo.disabled = self.open.disabled = True

    def show_step(self, step: EditStep) -> None:
        """Show where an edit stands."""
        self.bar.value = 100.0 * step.step / max(step.num_steps, 1)
        loss = f", loss {step.loss:.4f}" if step.loss else ""
        self.status.content = f"Step {step.step} of {step.num_steps}: {escape_markdown(step.note)}{loss}"

    def end_edit(self, end: str) -> None:
        """Show how an edit ended."""
        self.start.label = "Edit"
        self.stop.disabled = True
        self.bar.visible = False
        self.status.content = escape_markdown(end)

    def _stop(self) -> None:
        self.page.session.stop()
        self.status.content = "Stopping."

    def travel(self, move: Callable[[], Any]) -> None:
        """Go through the history; what comes back that was not written yet is written."""
        move()
        self.page.refresh()
        self.page.start_keeping()

    def _name_version(self) -> None:
        self.page.session.name_version(self.version_name.value)
        self.refresh()

    def _kept_by_label(self) -> dict[str, KeptEdit]:
        """Finished edits by what the user reads; those that read alike have the name of their case added."""
        kept = self.page.session.kept_edits()
        counts = Counter(one.label for one in kept)
        return {one.label if counts[one.label] == 1 else f"{one.label} | {one.edit}": one for one in kept}

    def _open_kept(self) -> None:
        kept = self._kept_by_label().get(self.kept.value)
        if kept is None:
            raise InputError("there is no finished edit of this scene yet; make one under Edit")
        self.page.session.open_kept(kept.folder)
        self.page.refresh()

    def _file_name(self, suffix: str) -> str:
        kept = self.page.session.shown.kept
        return f"{self.page.session.scene.name}-{kept.edit if kept else 'before'}{suffix}"

    def _save_splats(self, event: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._file_name(self.splat_format.value)
            self.page.session.save_splats(path)
            event.client.send_file_download(path.name, path.read_bytes(), save_immediately=True)

    def _save_clip(self, event: Any) -> None:
        session = self.page.session
        num_frames = round(self.seconds.value * FRAMES_PER_SECOND)
        cameras = path_cameras(session.scene, self.path.value, num_frames=num_frames)
        name, splats = self._file_name(f"-{self.path.value.replace(' ', '-')}.mp4"), session.shown.splats
        self.clip.disabled, self.clip_bar.visible = True, True
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip.mp4"
                for step in render_clip(splats, cameras, path, computing=session.computing):
                    self.clip_bar.value = 100.0 * step.done / step.total
                event.client.send_file_download(name, path.read_bytes(), save_immediately=True)
        finally:
            self.clip.disabled, self.clip_bar.visible = False, False
