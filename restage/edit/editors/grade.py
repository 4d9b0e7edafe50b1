"""An editor without a network: reads an instruction into a transform of colors, the same for every view.

Its truth is known on any photograph, held-out ones too, so that edits of real captures get exact numbers: it is written
as a truth folder of the scene, and `compare` and `diagnose` ask here what such an edit is measured between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.interface import Edited, EditorSource, KnownScores, ViewBatch
from restage.edit.pictures import quantize, read_mask, write_image, write_mask
from restage.records import GRADED, EditCase, EditRequest, InputError, write_json
from restage.run.layout import EDIT_CASE
from restage.scenes.capture import Capture

__all__ = ["Anchors", "GRADES", "GradeEditor", "anchors_of", "grade_views", "read_grade", "write_grade_truth"]

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Rec. 709."""
WHOLE = {"", "it", "all", "everything", "scene", "picture", "photo", "image", "view", "whole"}
"""What an instruction may call the whole view."""
SKIPPED = {"make", "turn", "paint", "color", "colour", "change", "dye", "grade", "look", "like", "be", "a", "an", "the"}
SKIPPED |= {"to", "into", "in", "of", "this", "that", "please", "more", "appear"}


@dataclass(frozen=True)
class Grade:
    """`matrix @ rgb + offset`, clamped to [0, 1], in the values that pictures are stored in."""

    matrix: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
        """Grade pictures in [0, 1]."""
        matrix, offset = (torch.tensor(values, device=images.device) for values in (self.matrix, self.offset))
        return (torch.einsum("ij,...jhw->...ihw", matrix, images) + offset[:, None, None]).clamp(0, 1)


def _scaled(red: float, green: float, blue: float) -> Grade:
    return Grade(((red, 0.0, 0.0), (0.0, green, 0.0), (0.0, 0.0, blue)))


def _tinted(red: float, green: float, blue: float) -> Grade:
    """Luminance times a color."""
    weights = [tuple(channel * weight for weight in LUMINANCE) for channel in (red, green, blue)]
    return Grade(tuple((a, b, c) for a, b, c in weights))


def _saturated(share: float, gain: float = 1.0, lift: float = 0.0) -> Grade:
    """Colors as far from their luminance as `share` says, times a gain, plus a lift."""
    rows = [tuple(gain * ((1 - share) * LUMINANCE[j] + share * (i == j)) for j in range(3)) for i in range(3)]
    return Grade(tuple((a, b, c) for a, b, c in rows), (lift, lift, lift))


GRADES: dict[str, Grade] = {
    "golden": _tinted(1.25, 0.95, 0.3),
    "bronze": _tinted(0.62, 0.4, 0.2),
    "copper": _tinted(1.05, 0.55, 0.38),
    "silver": _tinted(0.95, 0.98, 1.05),
    "marble": Grade(_saturated(0.1, 0.6).matrix, (0.38, 0.37, 0.36)),
    "red": _tinted(1.2, 0.2, 0.18),
    "orange": _tinted(1.3, 0.6, 0.12),
    "yellow": _tinted(1.3, 1.15, 0.2),
    "green": _tinted(0.25, 0.95, 0.3),
    "blue": _tinted(0.2, 0.4, 1.2),
    "purple": _tinted(0.75, 0.3, 1.0),
    "pink": _tinted(1.3, 0.65, 0.9),
    "white": Grade(_saturated(0.1, 0.5).matrix, (0.48, 0.48, 0.48)),
    "black": _tinted(0.2, 0.2, 0.22),
    "night": _scaled(0.22, 0.28, 0.48),
    "sunset": _scaled(1.1, 0.72, 0.48),
    "noon": _saturated(1.1, 1.2),
    "fog": Grade(_saturated(0.4, 0.45).matrix, (0.42, 0.43, 0.45)),
    "winter": Grade(_saturated(0.35, 0.9).matrix, (0.1, 0.12, 0.17)),
    "autumn": Grade(((0.65, 0.6, 0.0), (0.25, 0.5, 0.0), (0.05, 0.1, 0.5))),
    "sepia": _tinted(1.1, 0.9, 0.65),
    "grey": _saturated(0.0),
    "black and white": _saturated(0.0),
    "negative": Grade(((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)), (1.0, 1.0, 1.0)),
    "vivid": _saturated(1.7),
    "faded": _saturated(0.4, 0.85, 0.1),
    "brighter": _scaled(1.35, 1.35, 1.35),
    "darker": _scaled(0.55, 0.55, 0.55),
    "warmer": _scaled(1.15, 1.0, 0.78),
    "colder": _scaled(0.8, 0.97, 1.18),
}
"""By the word that asks for it."""

ALIASES = {
    "gold": "golden",
    "bronzed": "bronze",
    "silvery": "silver",
    "violet": "purple",
    "gray": "grey",
    "nighttime": "night",
    "dusk": "sunset",
    "midday": "noon",
    "day": "noon",
    "foggy": "fog",
    "misty": "fog",
    "wintry": "winter",
    "autumnal": "autumn",
    "fall": "autumn",
    "dark": "darker",
    "bright": "brighter",
    "warm": "warmer",
    "cold": "colder",
    "cooler": "colder",
}


class GradeRequest(NamedTuple):
    """What an instruction asks for."""

    grade: Grade
    subject: str  # the thing that is to be graded; empty for the whole view


def read_grade(instruction: str) -> GradeRequest:
    """Read an instruction such as "make it golden", "turn it to night" or "make the bear bronze".

    The last word that names a grade counts; what stands before it, without verbs and articles, is the subject.
    """
    words = re.findall(r"[a-z]+", instruction.lower())
    for end in range(len(words), 0, -1):
        for length in (3, 1):  # "black and white" before "white"
            name = " ".join(words[max(0, end - length) : end])
            grade = GRADES.get(ALIASES.get(name, name))
            if grade is not None:
                subject = [word for word in words[: max(0, end - length)] if word not in SKIPPED | WHOLE]
                return GradeRequest(grade, " ".join(subject))
    raise InputError(
        f"the grade editor finds no color or light in '{instruction}'; it knows {', '.join(GRADES)}, "
        "such as in 'make it golden'"
    )


@dataclass(frozen=True)
class GradeEditor:
    """Grades the original view, inside a region where one is given, whatever noise level is asked for."""

    regions: Float[Tensor, "n h w"] | None = None
    """Soft mask of each view of the whole capture, 1 where the grade holds; None for whole views."""

    @classmethod
    def open(cls, source: EditorSource) -> GradeEditor:
        """Make one, with the regions of a truth folder (`restage.edit.editors.grade`) where it has them."""
        folder = None if source.truth is None else source.truth / "regions"
        if folder is None or not folder.is_dir():
            return cls()
        names = [Path(name).with_suffix(".png").name for name in source.file_names]
        return cls(torch.stack([read_mask(folder / name) for name in names]))

    def edit(self, batch: ViewBatch) -> Edited:
        """Grade a batch of views; see `Editor.edit`."""
        regions = batch.regions
        if regions is None and self.regions is not None:
            regions = self.regions[list(batch.view_indices)].to(batch.originals.device)
        return grade_views(batch.originals, batch.request.instruction, regions)

    def scores(self) -> KnownScores:
        """A model that knows the graded views."""
        return KnownScores(self)


def grade_views(
    images: Float[Tensor, "b 3 h w"], instruction: str, regions: Float[Tensor, "b h w"] | None = None
) -> Edited:
    """Grade views by instruction: this is the truth of such an edit, on any view.

    Regions are soft masks, 1 where the grade holds, and come back as masks; None grades whole views.
    """
    grade, subject = read_grade(instruction)
    if regions is None:
        if subject:
            raise InputError(
                f"the grade editor does not know where '{subject}' is; give it regions (restage.edit.editors.grade), "
                "or say 'it' for the whole view"
            )
        return Edited(grade(images), torch.ones_like(images[:, 0]))
    return Edited(torch.lerp(images, grade(images), regions[:, None]), regions)


Views = Float[Tensor, "n 3 h w"]

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

    start: Views  # nothing is done: progress 0
    goal: Views  # the edit is perfect: progress 1


def anchors_of(
    case: EditCase, folder: Path, names: Sequence[str], *, source: Views, truth: Views, unedited: Views
) -> Anchors:
    """The source and the truth; of graded photographs the unedited render and that render graded.

    A scene fitted to photographs differs from them, often by more than an edit changes: between photographs doing
    nothing would score below 0, and the edit would be charged with the fit's error. What a grade makes of the unedited
    render is known, so there the edit is measured by itself.
    """
    if not case.is_graded:
        return Anchors(source, truth)
    regions = GradeEditor.open(EditorSource(file_names=tuple(names), truth=folder)).regions
    return Anchors(unedited, quantize(grade_views(unedited, case.request.instruction, regions).images))
