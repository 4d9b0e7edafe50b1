"""The menu of 2D editors that the 3D methods work with; each is one file and one line here."""

from __future__ import annotations

import importlib
import re

from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.grade import GradeEditor
from restage.edit.editors.interface import Edited, Editor, EditorFactory, EditorSource, ViewBatch
from restage.edit.editors.noisy import NoisyEditor
from restage.records import InputError

__all__ = [
    "EDITORS",
    "Edited",
    "Editor",
    "EditorFactory",
    "EditorSource",
    "ExactEditor",
    "GradeEditor",
    "NoisyEditor",
    "ViewBatch",
    "check_editor",
    "open_editor",
]


def _lazily(module: str, function: str) -> EditorFactory:
    """Put off the import of diffusers, which takes seconds that only those who use a model should pay."""

    def open_it(source: EditorSource) -> Editor:
        return getattr(importlib.import_module(f"restage.edit.editors.{module}"), function)(source)

    return open_it


EDITORS: dict[str, EditorFactory] = {
    "edit_model": _lazily("edit_model", "open_edit_model"),
    "exact": ExactEditor.open,
    "grade": GradeEditor.open,
    "instruct_pix2pix": _lazily("edit_model", "open_instruct_pix2pix"),
    "pipeline": _lazily("pipeline", "open_pipeline"),
    "text_to_image": _lazily("text_to_image", "open_text_to_image"),
}

NOISY = re.compile(r"noisy-(\d*\.?\d+)-(\w+)")
"""`noisy-0.5-exact` is the exact editor, disturbed with strength 0.5."""


def check_editor(name: str) -> None:
    """See that an editor of this name can be asked for: one of the menu, or `noisy-<strength>-<one of the menu>`.

    Raises:
        InputError: there is none.
    """
    noisy = NOISY.fullmatch(name)
    if (noisy[2] if noisy else name) not in EDITORS or (noisy and float(noisy[1]) > 1):
        raise InputError(f"unknown editor {name!r}; choose from {', '.join(EDITORS)}, or noisy-<0 to 1>-<one of them>")


def open_editor(name: str, source: EditorSource) -> Editor:
    """Make an editor by its name.

    Raises:
        InputError: there is none of this name, or what it is made from is missing.
    """
    check_editor(name)
    noisy = NOISY.fullmatch(name)
    if noisy:
        return NoisyEditor.of(EDITORS[noisy[2]](source), float(noisy[1]))
    return EDITORS[name](source)
