"""What an edit method gets and what it yields, and methods around a method: turned down, or stopped in time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from restage.edit.editors.interface import AskedPictures, Editor, NoiseKeys, ViewBatch, can_share_attention
from restage.edit.sharing import ViewSharing
from restage.records import EditRequest, InputError
from restage.regions.masks import join_masks
from restage.scenes.capture import Capture
from restage.scenes.splats import Splats

__all__ = ["Dialed", "EditJob", "EditStep", "Method", "TimeLimited", "asked_pictures", "blend_splats"]
__all__ += ["needs_editor"]


@dataclass(frozen=True)
class EditJob:
    """One edit of one scene with one editor and seed."""

    splats: Splats  # the fitted scene before the edit; a method works on a copy
    capture: Capture  # training views only: a method never gets held-out images or cameras
    view_indices: tuple[int, ...]  # index of each of those views in the whole capture, which editors know them by
    request: EditRequest
    editor: Editor
    seed: int
    regions: Float[Tensor, "views height width"] | None = None
    """Where each of the training views may change, 1 inside; None for everywhere."""
    weights: Float[Tensor, " n"] | None = None
    """How far each splat belongs to the region that is meant, in [0, 1]; None where there is none."""

    def __post_init__(self) -> None:
        if self.capture.held_out_indices:
            raise InputError(
                f"{self.capture.name}: expected training views only, got held-out views "
                f"{self.capture.held_out_indices}; pass capture.select(capture.train_indices)"
            )
        if not self.view_indices or len(self.view_indices) != len(self.capture.cameras):
            raise InputError(
                f"{self.capture.name}: expected an index for each of at least one training view, "
                f"got {len(self.view_indices)} for {len(self.capture.cameras)}"
            )

    def batch(
        self,
        chosen: Sequence[int],
        views: Float[Tensor, "batch 3 height width"] | None = None,
        *,
        noise_level: float,
        seed: int,
        noise_keys: NoiseKeys = None,
        sharing: ViewSharing | None = None,
        may_leave_out: bool = False,
    ) -> ViewBatch:
        """Training views for the editor to edit; see `ViewBatch`.

        Without `views`, their current renders, the edit starts from the unedited ones. `sharing` is ignored where the
        editor cannot share attention.
        """
        originals = self.capture.images[list(chosen)]
        return ViewBatch(
            originals if views is None else views,
            originals,
            request=self.request,
            view_indices=tuple(self.view_indices[view] for view in chosen),
            noise_level=noise_level,
            seed=seed,
            noise_keys=noise_keys,
            sharing=sharing if can_share_attention(self.editor) else None,
            may_leave_out=may_leave_out,
            join_masks=partial(self._join_masks, chosen),
            regions=None if self.regions is None else self.regions[list(chosen)].to(originals.device),
        )

    def _join_masks(self, chosen: Sequence[int], places: Sequence[int], masks: Tensor) -> Tensor:
        return join_masks(self.splats, self.capture.cameras[[chosen[place] for place in places]], masks)

    @classmethod
    def of(
        cls,
        splats: Splats,
        capture: Capture,
        request: EditRequest,
        editor: Editor,
        seed: int,
        regions: Float[Tensor, "n height width"] | None = None,
        weights: Float[Tensor, " k"] | None = None,
    ) -> EditJob:
        """Returns a job on the training views of a whole capture, whose regions may be given."""
        views = tuple(capture.train_indices)
        chosen = None if regions is None else regions[list(views)]
        return cls(splats, capture.select(views), views, request, editor, seed, chosen, weights)


class EditStep(NamedTuple):
    """A step of a method; its splats can be used at any moment."""

    step: int  # steps done so far
    num_steps: int
    loss: float  # loss of the last fit step; 0 where a method has none
    splats: Splats  # without gradients; the last step of a method holds the result
    note: str  # what is being done, for the user to read
    origins: Int[Tensor, " n"] | None = None
    """Index that each splat had before the edit, -1 for new ones; None where those before come first, all in order."""


@runtime_checkable
class Method(Protocol):
    """A method is a frozen dataclass of its settings."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit the scene; yields at least one step."""
        ...


def needs_editor(method: Method | type[Method]) -> bool:
    """Whether a method asks an editor; all do but those whose class says `needs_editor: ClassVar[bool] = False`."""
    return getattr(method, "needs_editor", True)


def asked_pictures(method: Method, num_views: int) -> AskedPictures | None:
    """What a method asks its editor for on so many training views, by its `asks`; None if it does not say."""
    if isinstance(method, Dialed | TimeLimited):
        return asked_pictures(method.settings, num_views)
    asks = getattr(method, "asks", None)
    return None if asks is None else asks(num_views)


GONE_LOGIT = -8.0
"""Opacity logit of a splat that cannot be seen: splats that an edit adds fade in from here."""


@dataclass(frozen=True, kw_only=True)
class Dialed:
    """Another method with a strength: every splat goes that share of its way."""

    settings: Method
    strength: float  # from 0, the scene before, to 1, the method's own result

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
    """Splats part of the way from one state of a scene to another."""
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
