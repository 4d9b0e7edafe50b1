"""Exact truth for real captures: photographs graded by an instruction, written as a truth folder of the scene.

`compare` and `diagnose` ask here what an edit is measured between: see `Anchors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.grade import GradeEditor, grade_views
from restage.edit.editors.interface import EditorSource
from restage.edit.pictures import quantize, write_image, write_mask
from restage.records import GRADED, EditCase, EditRequest, InputError, write_json
from restage.run.layout import EDIT_CASE
from restage.scenes.capture import Capture

__all__ = ["Anchors", "anchors_of", "write_grade_truth"]

CHANGE = 3 / 255
"""A pixel counts as changed where some channel differs by more, as in the truth of the miniature world."""


def write_grade_truth(
    folder: Path, capture: Capture, request: EditRequest, regions: Float[Tensor, "n h w"] | None = None
) -> EditCase:
    """Write `images/`, `masks/` and, if there are any, `regions/` of every view, held-out ones too; `edit.json` last.

    The editors `exact` and `grade` and the comparison read the folder. A view of a thing (with regions) is changed by
    the grade inside its region alone.

    The folder is `<run>/scenes/<scene>/truth/<edit>`; regions are soft masks, None to grade whole views.

    Raises:
        InputError: the instruction names no grade, regions do not fit the views, or none are given for a thing.
    """
    if regions is not None and regions.shape != capture.images[:, 0].shape:
        raise InputError(f"expected regions of shape {tuple(capture.images[:, 0].shape)}, got {tuple(regions.shape)}")
    # Rounded to what a file holds, so that whoever reads the regions grades as it was done here.
    regions = None if regions is None else quantize(regions)
    graded = grade_views(capture.images, request.instruction, regions)
    changed = ((graded.images - capture.images).abs().amax(dim=1) > CHANGE).float()
    names = [Path(name).with_suffix(".png").name for name in capture.file_names]
    for view, name in enumerate(names):
        write_image(folder / "images" / name, graded.images[view])
        write_mask(folder / "masks" / name, changed[view])
        if regions is not None:
            write_mask(folder / "regions" / name, regions[view])
    case = EditCase(scene=folder.parent.parent.name, kind=GRADED, request=request, has_truth=True)
    write_json(folder / EDIT_CASE, case)
    return case


class Anchors(NamedTuple):
    """The views between which an edit's progress is measured."""

    start: Float[Tensor, "n 3 h w"]
    """Nothing is done: progress 0."""
    goal: Float[Tensor, "n 3 h w"]
    """The edit is perfect: progress 1."""


def anchors_of(
    case: EditCase,
    folder: Path,
    names: Sequence[str],
    *,
    source: Float[Tensor, "n 3 h w"],
    truth: Float[Tensor, "n 3 h w"],
    unedited: Float[Tensor, "n 3 h w"],
) -> Anchors:
    """The source and the truth; of graded photographs the unedited render and that render graded.

    A scene fitted to photographs differs from them, often by more than an edit changes: between photographs doing
    nothing would score below 0, and the edit would be charged with the fit's error. What a grade makes of the unedited
    render is known, so there the edit is measured by itself.

    Args:
        case: The edit.
        folder: Its truth folder.
        names: File names of the views in it.
        source: S, true views before the edit.
        truth: T, true views after it.
        unedited: B, renders of the unedited scene.

    Raises:
        InputError: a region is missing or broken, or the edit is filed as a grade and its instruction names none.
    """
    if not case.is_graded:
        return Anchors(source, truth)
    regions = GradeEditor.open(EditorSource(file_names=tuple(names), truth=folder)).regions
    return Anchors(unedited, quantize(grade_views(unedited, case.request.instruction, regions).images))
