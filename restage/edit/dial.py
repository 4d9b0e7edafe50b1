"""Methods around a method: its result turned up or down, or what it has when its time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.edit.job import EditJob, EditStep, Method
from restage.records import InputError
from restage.scenes.splats import Splats

__all__ = ["Dialed", "TimeLimited", "blend_splats"]

GONE_LOGIT = -8.0
"""Opacity logit of a splat that cannot be seen: splats that an edit adds fade in from here."""


@dataclass(frozen=True, kw_only=True)
class Dialed:
    """Another method with a strength: every splat goes that share of its way."""

    settings: Method
    strength: float
    """From 0, the scene before, to 1, the method's own result."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f"expected a strength in [0, 1], got {self.strength}")

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Run the method; the splats of every step are blended with those before the edit."""
        for step in self.settings.run(job):
            yield step._replace(splats=blend_splats(job.splats, step.splats, self.strength))


@dataclass(frozen=True, kw_only=True)
class TimeLimited:
    """Another method that ends at its next step when its time is up; such a result depends on the machine."""

    settings: Method
    time_budget_s: float

    def __post_init__(self) -> None:
        if not 0 < self.time_budget_s < float("inf"):
            raise InputError(f"expected a time budget above 0 s, got {self.time_budget_s}")

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Run the method until then; it does at least one step."""
        started_s = time.perf_counter()
        for step in self.settings.run(job):
            yield step
            if step.step > 0 and time.perf_counter() - started_s > self.time_budget_s:
                return


def blend_splats(before: Splats, after: Splats, strength: float) -> Splats:
    """Splats part of the way from one state of a scene to another.

    Raises:
        InputError: `after` has fewer splats, or other spherical harmonics.
    """
    if len(after) < len(before) or after.sh.shape[1] != before.sh.shape[1]:
        raise InputError(
            f"expected the same splats, or more, after the edit, got {len(before)} and {len(after)}; "
            "such an edit has no strength in between"
        )
    if strength == 1:
        return after.clone()
    start = after.clone()
    for name, tensor in start.parameters().items():
        tensor[: len(before)] = getattr(before, name)
    # New splats have no place to come from: they fade in where they end.
    start.opacity_logits[len(before) :] = GONE_LOGIT
    blended = {
        name: torch.lerp(tensor, getattr(after, name), strength)
        for name, tensor in start.parameters().items()
        if name != "rotations"
    }
    return Splats(**blended, rotations=_blend_rotations(start.rotations, after.rotations, strength))


def _blend_rotations(
    before: Float[Tensor, "n 4"], after: Float[Tensor, "n 4"], strength: float
) -> Float[Tensor, "n 4"]:
    """Along the shorter way: q and -q are one rotation. Where nothing turns, bit for bit what was there."""
    is_same = (before == after).all(dim=1, keepdim=True)
    first, last = functional.normalize(before, dim=1), functional.normalize(after, dim=1)
    last = torch.where((first * last).sum(dim=1, keepdim=True) < 0, -last, last)
    return torch.where(is_same, before, functional.normalize(torch.lerp(first, last, strength), dim=1))
