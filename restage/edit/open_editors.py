"""Editors as data, and the one place that opens them: each model once, and not too many at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from restage.diffusion.editor_folder import edit_weights_sha256
from restage.edit.editors import Edited, Editor, EditorSource, ViewBatch, check_editor, open_editor
from restage.records import InputError, content_id
from restage.run.models import models_in

__all__ = ["MAX_OPEN_MODELS", "NO_EDITOR", "MenuEditor", "NoEditor", "OpenEditors", "SceneEditor"]

NO_EDITOR = "none"
"""Name that stands for the editor of a method that asks none."""

MODELS = ("edit_model", "instruct_pix2pix", "pipeline", "text_to_image")
"""Editors that are a model and look nothing up that belongs to one case."""

MAX_OPEN_MODELS = 3
"""Editors that are kept open: each may hold a model of several GB."""


@runtime_checkable
class SceneEditor(Protocol):
    """How an editor is opened; a frozen dataclass, since its fields are part of what a result is known by."""

    @property
    def is_shared(self) -> bool:
        """Whether the opened editor serves all cases; if not, it is opened for each, with the case's truth."""
        ...

    def open(self, source: EditorSource) -> Editor:
        """Make the editor.

        Args:
            source: File names of all views, truth folder (None where there is no truth), and the run's edit model,
                which is all that an editor that is shared gets.

        Raises:
            InputError: what it needs is not there; the result then is a row that says so.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class MenuEditor:
    """An editor of the menu `EDITORS` by its name, or `noisy-<strength>-<one of them>`."""

    name: str
    model: Path | None = None
    """Folder of its model; None with edit_model for the run's own, or else the one that comes with the package."""
    device: str = "cpu"
    """Where the model computes."""

    def __post_init__(self) -> None:
        check_editor(self.name)

    @property
    def is_shared(self) -> bool:
        """Models are; the others look up what belongs to one case."""
        return self.name.rpartition("-")[2] in MODELS

    def model_folder(self, default: Path | None) -> Path | None:
        """Folder of its model: its own, or the run's edit model, which no other editor takes; None for none."""
        if self.model is None and self.name.endswith("edit_model"):
            return default or models_in().edit_model
        return self.model

    def open(self, source: EditorSource) -> Editor:
        """Open it; see `SceneEditor.open`."""
        return open_editor(self.name, replace(source, model=self.model_folder(source.model), device=self.device))


class NoEditor:
    """Stands where a method that asks no editor gets one."""

    def edit(self, batch: ViewBatch) -> Edited:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError("this method was run without an editor, but asks for one; choose an editor")


class OpenEditors:
    """Opens editors, and keeps those that serve several cases; the one that was not used for longest goes first."""

    def __init__(self, max_open: int = MAX_OPEN_MODELS) -> None:
        self.max_open = max_open
        self._open: OrderedDict[str, Editor] = OrderedDict()
        self._weights: dict[Path, str] = {}

    def open(self, editor: SceneEditor, source: EditorSource) -> Editor:
        """Open an editor, or take the one that is open.

        Raises:
            InputError: what it needs is not there.
        """
        if not editor.is_shared:
            return editor.open(source)
        key = content_id("editor", [type(editor).__qualname__, editor, source.model])
        if key not in self._open:
            while len(self._open) >= self.max_open:
                self._open.popitem(last=False)  # before the next is loaded, which may need its room
            self._open[key] = editor.open(EditorSource(model=source.model))
        self._open.move_to_end(key)
        return self._open[key]

    def weights_id(self, model: Path) -> str:
        """Hash of an edit model's weights, read once.

        Raises:
            InputError: there is no edit model in the folder.
        """
        if model not in self._weights:
            self._weights[model] = edit_weights_sha256(model)
        return self._weights[model]
