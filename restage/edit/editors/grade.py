"""An editor without a network: reads an instruction into a transform of colors, the same for every view.

Its truth is known on any photograph, held-out ones too, so that edits of real captures get exact numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.interface import Edited, EditorSource, KnownScores, ViewBatch
from restage.edit.pictures import read_mask
from restage.records import InputError

__all__ = ["GRADES", "Grade", "GradeEditor", "GradeRequest", "grade_views", "read_grade"]

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
        graded = torch.einsum("ij,...jhw->...ihw", torch.tensor(self.matrix), images)
        return (graded + torch.tensor(self.offset)[:, None, None]).clamp(0, 1)


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
    subject: str
    """The thing that is to be graded; empty for the whole view."""


def read_grade(instruction: str) -> GradeRequest:
    """Read an instruction such as "make it golden", "turn it to night" or "make the bear bronze".

    The last word that names a grade counts; what stands before it, without verbs and articles, is the subject.

    Raises:
        InputError: no word of it names a grade.
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
        """Make one, with the regions of a truth folder (`restage.edit.truth`) where it has them.

        Raises:
            InputError: the region of a view is missing or broken.
        """
        folder = None if source.truth is None else source.truth / "regions"
        if folder is None or not folder.is_dir():
            return cls()
        names = [Path(name).with_suffix(".png").name for name in source.file_names]
        return cls(torch.stack([read_mask(folder / name) for name in names]))

    def edit(self, batch: ViewBatch) -> Edited:
        """Grade a batch of views; see `Editor.edit`.

        Raises:
            InputError: the instruction names no grade, or a thing while it is not known where that is.
        """
        regions = None if self.regions is None else self.regions[list(batch.view_indices)]
        return grade_views(batch.originals, batch.request.instruction, regions)

    def scores(self) -> KnownScores:
        """A model that knows the graded views."""
        return KnownScores(self)


def grade_views(
    images: Float[Tensor, "b 3 h w"], instruction: str, regions: Float[Tensor, "b h w"] | None = None
) -> Edited:
    """Grade views by instruction: this is the truth of such an edit, on any view.

    Regions are soft masks, 1 where the grade holds; None grades whole views.

    Returns:
        The graded views, and the regions as masks.

    Raises:
        InputError: the instruction names no grade, or a thing while there are no regions.
    """
    grade, subject = read_grade(instruction)
    if regions is None:
        if subject:
            raise InputError(
                f"the grade editor does not know where '{subject}' is; give it regions (restage.edit.truth), "
                "or say 'it' for the whole view"
            )
        return Edited(grade(images), torch.ones_like(images[:, 0]))
    return Edited(torch.lerp(images, grade(images), regions[:, None]), regions)
