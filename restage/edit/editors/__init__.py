"""The menu of 2D editors that the 3D methods work with, and the one place that opens them.

An editor is one file and one line in `EDITORS`. Each model is opened once, and not too many at a time.
"""

from __future__ import annotations

import importlib
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from restage.edit.editors.exact import ExactEditor, NoisyEditor
from restage.edit.editors.grade import GradeEditor
from restage.edit.editors.interface import MAX_DRIFT, Edited, Editor, EditorFactory, EditorSource, ViewBatch
from restage.records import InputError, added_later, content_id, did_you_mean
from restage.run.endpoint_config import EndpointConfig
from restage.run.models import models_in

__all__ = ["EDITORS", "NO_EDITOR", "MenuEditor", "NoEditor", "OpenEditors", "check_editor", "open_editor"]


def _lazily(module: str, function: str) -> EditorFactory:
    """Put off the import of diffusers, which takes seconds that only those who use a model should pay."""

    def open_it(source: EditorSource) -> Editor:
        return getattr(importlib.import_module(f"restage.edit.editors.{module}"), function)(source)

    return open_it


EDITORS: dict[str, EditorFactory] = {
    "edit_model": _lazily("edit_model", "open_edit_model"),
    "endpoint": _lazily("endpoint", "open_endpoint"),
    "exact": ExactEditor.open,
    "grade": GradeEditor.open,
    "instruct_pix2pix": _lazily("edit_model", "open_instruct_pix2pix"),
    "pipeline": _lazily("pipeline", "open_pipeline"),
    "text_to_image": _lazily("text_to_image", "open_text_to_image"),
    "try_on": _lazily("try_on", "open_try_on"),
}

VARIANT = re.compile(r"(noisy|drifting)-(\d*\.?\d+)-(\w+)")
"""`noisy-0.5-exact` is the exact editor, disturbed with strength 0.5; `drifting-4-grade` moves views up to 4 pixels."""

MOVES_PIXELS = ("endpoint", "pipeline")
"""Editors whose views are registered to their originals."""


def check_editor(name: str) -> None:
    """See that an editor of this name can be asked for: one of the menu, or a variant of one (`VARIANT`)."""
    variant = VARIANT.fullmatch(name)
    is_too_much = variant and variant[1] == "noisy" and float(variant[2]) > 1
    if (variant[3] if variant else name) not in EDITORS or is_too_much:
        raise InputError(
            f"unknown editor {name!r}; {did_you_mean(name, EDITORS)}"
            f"choose from {', '.join(EDITORS)}, noisy-<0 to 1>-<one of them> or "
            "drifting-<pixels>-<one of them>"
        )


def open_editor(name: str, source: EditorSource) -> Editor:
    """Make an editor by its name; what moves pixels comes with its views put back."""
    check_editor(name)
    variant = VARIANT.fullmatch(name)
    plain = variant[3] if variant else name
    if source.options and plain not in ("edit_model", "endpoint", "pipeline", "text_to_image", "try_on"):
        raise InputError(f"the editor {name} has no options; leave out {' '.join(source.options)}")
    editor = EDITORS[plain](source)
    if variant and variant[1] == "noisy":
        editor = NoisyEditor.of(editor, float(variant[2]))
    drift_px = float(variant[2]) if variant is not None and variant[1] == "drifting" else None
    is_moved = plain in MOVES_PIXELS and getattr(editor, "moves_pixels", True)
    if drift_px is not None or is_moved:
        # OpenCV takes a moment to import, which only those who need it should pay.
        from restage.edit.editors.drift import DriftingEditor
        from restage.edit.editors.settled import SettledEditor

        editor = editor if drift_px is None else DriftingEditor(editor, drift_px)
        return SettledEditor(editor, source.max_drift, finds_masks=is_moved)
    return editor


NO_EDITOR = "none"
"""Name that stands for the editor of a method that asks none."""

MODELS = ("edit_model", "instruct_pix2pix", "pipeline", "text_to_image", "try_on")
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
        """Make the editor; one that is shared gets the run's edit model alone as its source."""
        ...


@dataclass(frozen=True, kw_only=True)
class MenuEditor:
    """An editor of the menu `EDITORS` by its name, or a variant of one."""

    name: str
    model: Path | None = None
    """Folder of its model; None with edit_model for the run's own, or else the one that comes with the package."""
    device: str = "cpu"
    """Where the model computes; for `cpu` it does so where the scene lies."""
    endpoint: EndpointConfig = added_later(EndpointConfig())
    """Where `endpoint` asks, and what that may cost."""
    options: tuple[str, ...] = added_later(())
    """Options of the editor, as `key=value`; see `PipelineOptions`."""
    max_drift: float = added_later(MAX_DRIFT)
    """Views that the editor moves farther than this share of their width are left out."""

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

    def model_sha256(self, default: Path | None) -> str:
        """Hash of its model's files, `default` being the run's edit model; empty where it has none on this machine."""
        from restage.edit.editors.weights import model_sha256

        variant = VARIANT.fullmatch(self.name)
        return model_sha256(variant[3] if variant else self.name, self.model_folder(default), self.options)

    def open(self, source: EditorSource) -> Editor:
        """Open it; see `SceneEditor.open`."""
        model = self.model_folder(source.model)
        device = source.device if self.device == "cpu" else self.device
        told = {"device": device, "endpoint": self.endpoint, "options": self.options, "max_drift": self.max_drift}
        return open_editor(self.name, replace(source, model=model, **told))


class NoEditor:
    """Stands where a method that asks no editor gets one."""

    def edit(self, batch: ViewBatch) -> Edited:
        """Refuse."""
        raise InputError("this method was run without an editor, but asks for one; choose an editor")


class OpenEditors:
    """Opens editors, and keeps those that serve several cases; the one that was not used for longest goes first."""

    def __init__(self, max_open: int = MAX_OPEN_MODELS) -> None:
        self.max_open = max_open
        self._open: OrderedDict[str, Editor] = OrderedDict()
        self._weights: dict[Path, str] = {}

    def open(self, editor: SceneEditor, source: EditorSource) -> Editor:
        """Open an editor, or take the one that is open."""
        if not editor.is_shared:
            return editor.open(source)
        key = content_id("editor", [type(editor).__qualname__, editor, source.model, source.device])
        if key not in self._open:
            while len(self._open) >= self.max_open:
                self._open.popitem(last=False)  # before the next is loaded, which may need its room
            self._open[key] = editor.open(EditorSource(model=source.model, device=source.device))
        self._open.move_to_end(key)
        return self._open[key]

    def weights_id(self, model: Path) -> str:
        """Hash of an edit model's weights, read once."""
        from restage.diffusion.edit_models import edit_weights_sha256  # diffusers takes seconds to import

        if model not in self._weights:
            self._weights[model] = edit_weights_sha256(model)
        return self._weights[model]
