"""How well the edit model edits single rendered views, against their exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.miniature.held_out import CASE_KINDS, Case
from restage.compare.metrics import mask_iou, progress, spill
from restage.diffusion.editor import EditModel, edit_images
from restage.records import derive_seed
from restage.world.description import SceneObject
from restage.world.grammar import sample_edit
from restage.world.render import render_view

__all__ = ["APPEARANCE", "SHAPE", "EditedCase", "adding_elsewhere", "edit_figures", "edit_views", "run_edits"]

APPEARANCE, SHAPE = ("recolour", "ground", "time"), ("reshape", "add", "remove")
BATCH_SIZE = 14


class EditedCase(NamedTuple):
    """One edit, what the model made of it, and its scores (see docs/conventions.md)."""

    case: Case
    edited: Float[Tensor, "3 h w"]
    """As the model gives it."""
    kept: Float[Tensor, "3 h w"]
    """With everything outside the model's mask as it was: this is what is scored."""
    progress: float
    spill: float
    mask_iou: float


def edit_views(
    model: EditModel, views: Float[Tensor, "n 3 h w"], instructions: Sequence[str]
) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]]:
    """Edit views from pure noise: as the model gives them, and with everything outside its mask as it was."""
    edited, kept = [], []
    for start in range(0, len(views), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        before = views[part]
        made = edit_images(model, before, before, instructions[part], noise_level=1.0, seeds=[0] * len(before))
        edited.append(made.images)
        kept.append(before + (made.images - before) * (made.masks[:, None] > 0.5))
    return torch.cat(edited), torch.cat(kept)


def run_edits(model: EditModel, cases: Sequence[Case]) -> list[EditedCase]:
    """Edit the view of each case from pure noise and score it."""
    before, instructions = torch.stack([case.before for case in cases]), [case.edit.instruction for case in cases]
    found = []
    for case, edited, kept in zip(cases, *edit_views(model, before, instructions), strict=True):
        view, source, truth = kept[None], case.before[None], case.after[None]
        scores = (
            progress(view, source, truth, case.mask[None]).mean,
            spill(view, source, case.mask[None]).mean,
            mask_iou(view, source, source, truth).mean,
        )
        found.append(EditedCase(case, edited, kept, *scores))
    return found


def edit_figures(edits: Sequence[EditedCase]) -> dict[str, float]:
    """Means over the edits of some kinds; an unscored spill (truth covers everything) is left out."""

    def mean(kinds: Sequence[str], name: str) -> float:
        values = [getattr(edit, name) for edit in edits if edit.case.edit.kind in kinds]
        return float(np.nanmean(values)) if values else float("nan")

    return {
        "edit_progress_appearance": mean(APPEARANCE, "progress"),
        "edit_progress_shape": mean(SHAPE, "progress"),
        "edit_spill": mean(CASE_KINDS, "spill"),
        "edit_mask_iou": mean(CASE_KINDS, "mask_iou"),
        **{f"edit_{name}_{kind}": mean((kind,), name) for name in ("progress", "mask_iou") for kind in CASE_KINDS},
    }


def _another_place(case: Case, index: int) -> SceneObject:
    """The added object, where another edit of the same scene would have put one of its size."""
    added = case.edit.after.objects[-1]
    for attempt in range(100):
        seed = derive_seed("another place", index, attempt)
        other = sample_edit(case.edit.before, seed, kind="add").after.objects[-1]
        if other.size == added.size:
            return replace(added, x=other.x, y=other.y, yaw_rad=other.yaw_rad)
    raise RuntimeError(f"no place found for {added}")


def adding_elsewhere(cases: Sequence[Case]) -> dict[str, float]:
    """Progress and mask IoU of exact pictures in which the right object was added in another free place.

    This is what an editor is scored that adds perfectly, but not where the instruction says. NaN without such cases.
    """
    scores = []
    for index, case in enumerate(cases):
        if case.edit.kind == "add":
            scene = replace(case.edit.after, objects=(*case.edit.before.objects, _another_place(case, index)))
            view = torch.from_numpy(render_view(scene, case.camera).image)[None]
            before, after = case.before[None], case.after[None]
            scores.append(
                (progress(view, before, after, case.mask[None]).mean, mask_iou(view, before, before, after).mean)
            )
    means = np.mean(scores, axis=0) if scores else (float("nan"), float("nan"))
    return {f"{name}_of_adding_elsewhere": float(m) for name, m in zip(("progress", "mask_iou"), means, strict=True)}
