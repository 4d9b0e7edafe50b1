"""Edited views put back where their originals are, and masks for editors that have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from restage.edit.editors.change import change_masks
from restage.edit.editors.drift import Drift, find_drift, move, undo_drift
from restage.edit.editors.interface import MAX_DRIFT, Edited, Editor, ViewBatch
from restage.records import InputError

__all__ = ["SettledEditor"]


@dataclass(frozen=True)
class SettledEditor:
    """Another editor whose views are registered to their originals; `Edited.drifts` says how far they were off."""

    editor: Editor
    max_drift: float = MAX_DRIFT
    finds_masks: bool = False
    """Whether the other one has no masks, so that they are where its views differ from their originals."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drift <= 1:
            raise InputError(f"expected max_drift in [0, 1], a share of the view's width, got {self.max_drift}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)  # what else some editors offer

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit, and undo the drift; see `Editor.edit`. A view that does not drift is not resampled."""
        edited = self.editor.edit(batch)
        images, masks, left_out = edited.images.clone(), edited.masks.clone(), dict(edited.left_out)
        drifts: dict[int, float] = {}
        for place in edited.answered:
            original, index = batch.originals[place], batch.view_indices[place]
            drift = find_drift(images[place].cpu(), original.cpu())
            share = drift.share(*original.shape[1:])
            drifts[place] = max(share, edited.drifts.get(place, 0.0))
            if share > self.max_drift:
                reason = f"view {index} drifted by {share:.1%} of its width, more than {self.max_drift:.1%}"
                if not batch.may_leave_out:
                    raise InputError(f"{reason}; allow it with --max-drift, or take another method or editor")
                left_out[place], images[place], masks[place] = reason, original, 0.0
            elif drift != Drift():
                images[place] = undo_drift(images[place].cpu(), original.cpu(), drift)
                masks[place] = move(masks[place][None].cpu(), _inverse(drift, *original.shape[1:]))[0]
        places = [place for place in range(len(images)) if place not in left_out]
        if not places and len(images) > 1:
            raise InputError(f"all views were left out, such as: {next(iter(left_out.values()))}")
        if self.finds_masks and places:
            found = change_masks(images[places].cpu(), batch.originals[places].cpu()).to(masks)
            masks[places] = found if batch.join_masks is None else batch.join_masks(places, found)
        return Edited(images, masks, left_out, drifts)


def _inverse(drift: Drift, height: int, width: int) -> Drift:
    matrix = torch.eye(3, dtype=torch.float64).numpy()
    matrix[:2] = drift.matrix(height, width)
    return Drift.of(torch.linalg.inv(torch.from_numpy(matrix)).numpy()[:2], height, width)
