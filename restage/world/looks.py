"""How objects are painted: colors with and without a name, and two-tone patterns."""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np

from restage.world.description import COLORS, KINDS, PATTERNS

__all__ = ["HELD_OUT_PATTERNS", "MIN_CONTRAST", "PAINT", "Look", "color_distance", "paint_of", "sample_look"]

PAINT = {
    "red": (0.80, 0.05, 0.05),
    "orange": (0.95, 0.36, 0.03),
    "yellow": (0.95, 0.78, 0.06),
    "green": (0.06, 0.50, 0.12),
    "blue": (0.05, 0.16, 0.80),
    "purple": (0.36, 0.08, 0.62),
    "pink": (0.95, 0.36, 0.58),
    "white": (0.92, 0.92, 0.90),
}
"""Linear RGB reflectance of the color words."""

HELD_OUT_PATTERNS = frozenset((kind, PATTERNS[i % len(PATTERNS)]) for i, kind in enumerate(KINDS))
"""One pattern a kind that no training scene shows."""

UNNAMED_SHARE, PATTERN_SHARE = 0.2, 0.3
"""Shares of looks whose colors no word names, and of those with a pattern."""
MIN_UNLIKE = 0.22
"""Distance from which on a color is another than each that has a name."""
MIN_CONTRAST = 0.4
"""Distance between the colors of a pattern."""


class Look(NamedTuple):
    """The paint of an object, in the words of `SceneObject`."""

    color: str
    pattern: str = ""
    second_color: str = ""


def paint_of(color: str) -> tuple[float, float, float]:
    """Return the linear RGB reflectance of a color word, or of a color as `#rrggbb`."""
    if color in PAINT:
        return PAINT[color]
    red, green, blue = ((int(color[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    return red, green, blue


def color_distance(a: str, b: str) -> float:
    """Return how different two colors look: their distance in gamma-coded RGB, whose channels go from 0 to 1."""
    return math.dist(*([value ** (1 / 2.2) for value in paint_of(color)] for color in (a, b)))


def _unnamed_color(rng: np.random.Generator) -> str:
    while True:
        rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.15, 1) ** 0.7, rng.uniform(0.3, 0.98))
        color = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
        if min(color_distance(color, name) for name in COLORS) > MIN_UNLIKE:
            return color


def sample_look(
    rng: np.random.Generator, colors: list[str], patterns: list[str], *, is_named: bool | None = None
) -> Look:
    """Sample how an object is painted.

    Args:
        rng: Source of the choice.
        colors: Names to choose the first color from.
        patterns: Patterns to choose from, where the look has one.
        is_named: Whether words say it all; either where None.
    """
    is_named = is_named if is_named is not None else bool(rng.uniform() > UNNAMED_SHARE)
    has_pattern = bool(patterns) and bool(rng.uniform() < PATTERN_SHARE)
    while True:
        first = colors[int(rng.integers(len(colors)))] if is_named else _unnamed_color(rng)
        if not has_pattern:
            return Look(first)
        second = COLORS[int(rng.integers(len(COLORS)))] if is_named else _unnamed_color(rng)
        if color_distance(first, second) > MIN_CONTRAST:
            return Look(first, patterns[int(rng.integers(len(patterns)))], second)
