"""The menu of direct edits: each a frozen dataclass of parameters whose `apply` is a pure function of splats.

Which splats are meant is a region: a weight in [0, 1] for each. Colors and opacities follow soft weights; what moves
are whole splats, those with a weight of at least one half, since a splat in two places would be seen in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.edit.direct.colors import (
    brightened,
    change_colors,
    hue_shifted,
    mean_color,
    read_color,
    saturated,
    tinted,
    towards,
)
from restage.records import InputError
from restage.regions.masks import INSIDE
from restage.scenes.splats import Splats
from restage.scenes.turning import move_splats

__all__ = ["Changed", "Delete", "Duplicate", "Move", "OPERATIONS", "Operation", "Recolor", "Rotate", "Scale"]
__all__ += ["Transform", "carry_weights", "region_center"]

Vector = tuple[float, float, float]
Weights = Float[Tensor, " n"]

WHOLE = 0.95
"""From this weight on a splat is deleted altogether; what would be left of it cannot be seen."""
FAINTEST = 1 / 255
"""Splats below this opacity are not drawn."""


class Changed(NamedTuple):
    """The result of a direct edit."""

    splats: Splats
    origins: Int[Tensor, " m"]
    """Index that each splat had before the edit; -1 for a copy."""


@runtime_checkable
class Operation(Protocol):
    """A direct edit with its parameters."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """Edit the splats of a region, which stay as they are; the result shares no memory with them."""
        ...


def carry_weights(weights: Weights, origins: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The weights of a region after an edit; copies do not belong to it."""
    origins = origins.to(weights.device)
    return torch.where(origins >= 0, weights[origins.clamp_min(0)], 0.0)


def region_center(splats: Splats, weights: Weights) -> Float[Tensor, " 3"]:
    """Mean position of a region's splats, weighted by their opacity, in world units."""
    counts = weights * splats.opacity_logits.sigmoid()
    return (counts[:, None] * splats.means).sum(dim=0) / counts.sum().clamp_min(1e-12)


def _inside(splats: Splats, weights: Weights) -> Tensor:
    """Which splats belong to the region; refuses one that does not fit, or holds none."""
    if len(weights) != len(splats):
        raise InputError(f"the region has {len(weights)} weights, but the scene {len(splats)} splats")
    inside = weights >= INSIDE
    if not bool(inside.any()):
        raise InputError("the region holds no splats; a direct edit needs some to change")
    return inside


def _in_place(splats: Splats) -> Changed:
    return Changed(splats, torch.arange(len(splats), device=splats.means.device))


@dataclass(frozen=True, kw_only=True)
class Recolor:
    """Changes colors: first the hue, then saturation, brightness, tint, and at last towards a color."""

    towards: str = ""
    """Color that the region gets, a bright one in its light parts, shading kept: a name in CSS such as `gold`, or
    `#rrggbb`."""
    tint: str = ""
    """Color that all colors are multiplied by."""
    hue: float = 0.0
    """Degrees that hues are turned by; 120 makes red green."""
    saturation: float = 1.0
    """Factor of the saturation; 0 is grey."""
    brightness: float = 1.0
    """Factor of all colors."""
    amount: float = 1.0
    """Share of the way, from 0 to 1."""

    def __post_init__(self) -> None:
        for color in (self.towards, self.tint):
            if color:
                read_color(color)
        factors = (self.saturation, self.brightness)
        if not (0 <= self.amount <= 1 and all(0 <= one < math.inf for one in factors) and math.isfinite(self.hue)):
            raise InputError(f"expected an amount in [0, 1], saturation and brightness of at least 0, got {self}")
        if all(getattr(self, field.name) == field.default for field in fields(self) if field.name != "amount"):
            raise InputError("say which color: towards, tint, hue, saturation or brightness")

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        _inside(splats, weights)
        change = hue_shifted(self.hue).then(saturated(self.saturation)).then(brightened(self.brightness))
        if self.tint:
            change = change.then(tinted(read_color(self.tint)))
        if self.towards:
            mean = change.matrix @ mean_color(splats, weights).cpu() + change.shift
            change = change.then(towards(read_color(self.towards), mean))
        return _in_place(change_colors(splats, weights, change.faded(self.amount)))


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Takes the splats of a region away; of those that belong to it in part, the rest stays."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        _inside(splats, weights)
        left = splats.opacity_logits.sigmoid() * (1 - weights)
        kept = (weights == 0) | ((weights < WHOLE) & (left >= FAINTEST))
        changed = splats[kept].clone()
        # What a weight near 0 leaves of an opaque splat is 1 in float32, whose logit is infinite.
        logits = torch.minimum(left.clamp_min(1e-9).logit(), splats.opacity_logits)
        changed.opacity_logits = torch.where(weights > 0, logits, splats.opacity_logits)[kept]
        return Changed(changed, kept.nonzero()[:, 0])


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Moves, turns and scales a region at once, as a gizmo in a viewer does."""

    matrix: tuple[tuple[float, float, float, float], ...]
    """Where a point x goes, `matrix` (x, 1), in world units: rows of a similarity, 4 x 4."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        inside, change = _inside(splats, weights), torch.tensor(self.matrix, dtype=torch.float64)
        if change.shape != (4, 4) or not bool(torch.isfinite(change).all()):
            raise InputError(f"expected a matrix of 4 x 4 numbers, got {self.matrix}")
        changed, moved = splats.clone(), move_splats(splats[inside], change)
        for name, tensor in changed.parameters().items():
            tensor[inside] = getattr(moved, name).to(tensor)
        return _in_place(changed)


@dataclass(frozen=True, kw_only=True)
class Move:
    """Moves a region."""

    by: Vector
    """How far along x, y and z, in world units."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        return _transform(splats, weights, torch.eye(3, dtype=torch.float64), shift=self.by)


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Turns a region, counterclockwise as seen from the tip of the axis."""

    degrees: float
    """How far."""
    axis: Literal["x", "y", "z"] = "z"
    """Axis of the world; z is up."""
    about: Vector | None = None
    """A point that stays in its place, in world units; None for the center of the region."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[self.axis]
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        return _transform(splats, weights, turn, about=self.about)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Makes a region larger or smaller."""

    factor: float
    """Factor of all sizes, above 0."""
    about: Vector | None = None
    """A point that stays in its place, in world units; None for the center of the region."""

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise InputError(f"expected a factor above 0, got {self.factor}")

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        return _transform(splats, weights, self.factor * torch.eye(3, dtype=torch.float64), about=self.about)


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Adds a copy of a region."""

    by: Vector
    """How far the copy lies along x, y and z, in world units."""

    def apply(self, splats: Splats, weights: Weights) -> Changed:
        """See `Operation.apply`."""
        inside = _inside(splats, weights)
        copy = Move(by=self.by).apply(splats[inside], weights[inside]).splats
        both = {name: torch.cat([tensor, getattr(copy, name)]) for name, tensor in splats.parameters().items()}
        kept = torch.arange(len(splats), device=splats.means.device)
        return Changed(Splats(**both), torch.cat([kept, kept.new_full((len(copy),), -1)]))


def _transform(
    splats: Splats, weights: Weights, linear: Tensor, *, shift: Vector | None = None, about: Vector | None = None
) -> Changed:
    """Move a region by x -> linear (x - about) + about + shift; `about` None is its center, which no shift needs."""
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = linear
    if shift is not None:
        change[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    else:
        center = region_center(splats, weights) if about is None else torch.tensor(about)
        change[:3, 3] = center.double().cpu() - change[:3, :3] @ center.double().cpu()
    rows = change.tolist()
    return Transform(matrix=tuple((a, b, c, d) for a, b, c, d in rows)).apply(splats, weights)


OPERATIONS: dict[str, type[Operation]] = {
    "recolor": Recolor,
    "delete": Delete,
    "duplicate": Duplicate,
    "move": Move,
    "rotate": Rotate,
    "scale": Scale,
    "transform": Transform,
}
"""By the name that a record has for it."""
