"""What a scene is, as typed values: objects, their places and looks, ground, light, and a change of all that.

Everything in the world starts from these: `grammar` and `second` sample them and put them into words, `shapes` lays
them out for tracing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restage.records import InputError, added_later, from_plain

__all__ = ["COLORS", "EDIT_KINDS", "GROUNDS", "KINDS", "KINDS_OF_EDITION", "PATTERNS", "SECOND_EDIT_KINDS", "SIZES"]
__all__ += ["TIMES", "TOWARD_SUN", "Description", "Edit", "Place", "SceneObject"]

KINDS = ("ball", "cube", "cylinder", "cone", "snowman", "tree", "mushroom", "house")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
GROUNDS = ("grass", "sand", "snow", "wood")
EDIT_KINDS = ("recolour", "reshape", "add", "remove", "ground", "time", "resize")
SECOND_EDIT_KINDS = (*EDIT_KINDS, "move", "pattern", "look")
"""Kinds of edit of the second edition; a look is shown by a picture, and may be one that words cannot say."""
KINDS_OF_EDITION = {1: EDIT_KINDS, 2: SECOND_EDIT_KINDS}
TIMES = ("noon", "sunset", "night", "fog")
SIZES = {"small": 0.74, "": 1.0, "big": 1.3}
PATTERNS = ("striped", "checked", "dotted", "banded")
TOWARD_SUN = {
    "noon": (0.45, 0.35, 0.95),
    "sunset": (0.85, -0.25, 0.42),
    "night": (-0.55, 0.35, 0.80),
    "fog": (0.20, 0.30, 1.00),
}
"""Where the sun, or the moon, stands at each time; not of unit length."""
_HEX_COLOR = re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A thing on the ground, or on top of another."""

    kind: str
    color: str
    """One of `COLORS`, or sRGB as `#rrggbb`, which no word names."""
    size: str = ""
    """`small`, `big`, or empty for neither."""
    x: float = 0.0
    y: float = 0.0
    yaw_rad: float = 0.0
    z: float = added_later(0.0)
    """Height of its foot above the ground."""
    pattern: str = added_later("")
    """One of `PATTERNS`; empty for one color all over."""
    second_color: str = added_later("")
    """The pattern's other color, as `color`."""

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.kind, KINDS, "kind"),
            (self.size, SIZES, "size"),
            (self.pattern, ("", *PATTERNS), "pattern"),
        ):
            if value not in known:
                raise InputError(f"unknown {name} '{value}'; known: {', '.join(k or '(none)' for k in known)}")
        for color in (self.color, self.second_color) if self.pattern else (self.color,):
            if color not in COLORS and not _HEX_COLOR.fullmatch(color):
                raise InputError(f"unknown color '{color}'; known: {', '.join(COLORS)}, and #rrggbb")

    @property
    def scale(self) -> float:
        """Size as a factor."""
        return SIZES[self.size]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole scene: its objects, what they stand on, and the light."""

    objects: tuple[SceneObject, ...]
    ground: str
    time: str
    """Time of day or weather."""
    sun_turn_rad: float = added_later(0.0)
    """How far the sun has turned around the vertical from where it stands at this time, counterclockwise from above."""

    def __post_init__(self) -> None:
        if self.ground not in GROUNDS or self.time not in TIMES:
            raise InputError(f"unknown ground or time: '{self.ground}', '{self.time}'; known: {GROUNDS}, {TIMES}")

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Description:
        """Read it back from its JSON form."""
        return from_plain(value, cls, where="a description")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A statement about where an object is; its text is such as `small cone on top of the red cube`."""

    subject: str
    """Words that single out the object, such as `small cone`."""
    relation: str
    """A key of `places.RELATIONS`."""
    anchors: tuple[str, ...]
    """Words that single out the one or two objects that the place is told by."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of a description, and how a person asks for it."""

    kind: str
    instruction: str
    before: Description
    after: Description
    place: Place | None = added_later(None)
    """What the instruction says about the place of what it adds or moves; true of the scene after the edit."""
