"""How well the edit model edits single rendered views, against their exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.miniature.held_out import Case
from restage.compare.metrics import mask_iou, progress, spill
from restage.diffusion.editor import EditModel, edit_images
from restage.world.grammar import EDIT_KINDS

__all__ = ["APPEARANCE", "SHAPE", "EditedCase", "edit_figures", "run_edits"]

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


def run_edits(model: EditModel, cases: Sequence[Case]) -> list[EditedCase]:
    """Edit the view of each case from pure noise and score it."""
    found = []
    for start in range(0, len(cases), BATCH_SIZE):
        batch = cases[start : start + BATCH_SIZE]
        before = torch.stack([case.before for case in batch])
        instructions = [case.edit.instruction for case in batch]
        edited = edit_images(model, before, before, instructions, noise_level=1.0, seeds=[0] * len(batch))
        kept = before + (edited.images - before) * (edited.masks[:, None] > 0.5)
        for index, case in enumerate(batch):
            view, source, truth = kept[index, None], case.before[None], case.after[None]
            scores = (
                progress(view, source, truth, case.mask[None]).mean,
                spill(view, source, case.mask[None]).mean,
                mask_iou(view, source, case.mask[None]).mean,
            )
            found.append(EditedCase(case, edited.images[index], kept[index], *scores))
    return found


def edit_figures(edits: Sequence[EditedCase]) -> dict[str, float]:
    """Means over the edits of some kinds; an unscored spill (truth covers everything) is left out."""

    def mean(kinds: Sequence[str], name: str) -> float:
        values = [getattr(edit, name) for edit in edits if edit.case.edit.kind in kinds]
        return float(np.nanmean(values)) if values else float("nan")

    return {
        "edit_progress_appearance": mean(APPEARANCE, "progress"),
        "edit_progress_shape": mean(SHAPE, "progress"),
        "edit_spill": mean(EDIT_KINDS, "spill"),
        "edit_mask_iou": mean(EDIT_KINDS, "mask_iou"),
        **{f"edit_progress_{kind}": mean((kind,), "progress") for kind in EDIT_KINDS},
    }
