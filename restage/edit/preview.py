"""What the user sees of an edit while it runs, and whether it did anything: renders of views before and now.

Called by what runs a method, never by the method: the views may be held-out ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.job import EditStep
from restage.edit.pictures import write_image
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats

__all__ = ["NO_OP_SHARE", "Preview", "changed_share"]

NUM_PREVIEW_VIEWS = 3
NUM_PEEKS = 10
"""How often in an edit views are rendered to be shown; nothing depends on it."""
NUM_CHECKED_VIEWS = 8
CHANGE = 0.05
"""A pixel counts as changed from a mean difference over channels above this, as in `compare.metrics`."""
NO_OP_SHARE = 0.001
"""An edit changed nothing where no view has more than this share of its pixels changed."""


class Preview:
    """Held-out views before the edit above, as they are now below, in `preview.png`; gone when the result is there."""

    def __init__(self, before: Splats, capture: Capture, folder: Path) -> None:
        """Choose views: held-out ones, or any where there are none."""
        shown = list(capture.held_out_indices or range(len(capture.cameras)))
        shown = shown[:: max(1, len(shown) // NUM_PREVIEW_VIEWS)][:NUM_PREVIEW_VIEWS]
        self.cameras = capture.cameras[shown]
        self.name = "held-out views" if capture.held_out_indices else "views"
        self.before = render_views(before, self.cameras)
        self.path = folder / "preview.png"
        self.num_shown = 0
        self.text = ""

    def show(self, step: EditStep) -> EditStep:
        """Add to a step's note how far the views have changed; about ten times an edit they are rendered anew."""
        # By the step's share and not by time, so that the notes of a run are the same on any machine.
        if step.step * NUM_PEEKS >= self.num_shown * max(1, step.num_steps) and step.step > 0:
            self.num_shown = step.step * NUM_PEEKS // max(1, step.num_steps) + 1
            now = render_views(step.splats, self.cameras)
            self.text = f"; {self.name} changed by {float((now - self.before).abs().mean()):.3f}"
            write_image(self.path, torch.cat([_side_by_side(self.before), _side_by_side(now)], dim=1))
        return step._replace(note=step.note + self.text)

    def remove(self) -> None:
        """Remove the picture."""
        self.path.unlink(missing_ok=True)


def _side_by_side(views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "3 h width"]:
    return torch.cat(list(views), dim=2)


def changed_share(before: Splats, after: Splats, capture: Capture) -> float:
    """Share of its pixels that changed in the view that changed most, of some views all around."""
    count = len(capture.cameras)
    cameras = capture.cameras[list(range(0, count, max(1, count // NUM_CHECKED_VIEWS)))]
    difference = (render_views(after, cameras) - render_views(before, cameras)).abs().mean(dim=1)
    return float((difference > CHANGE).float().mean(dim=(1, 2)).max())
