"""The plain methods that others are compared with: nothing is done, or every view is edited once and fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from restage.edit.editors.interface import AskedPictures
from restage.edit.job import EditJob, EditStep
from restage.scenes.config import RefineConfig
from restage.scenes.fit import Targets, refine_splats

__all__ = ["Nothing", "ReplaceOnce"]


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Returns the unedited splats; "best preservation" is its name in many a table.

    Memory: that of the splats, twice.
    """

    needs_editor: ClassVar[bool] = False

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Yield the splats once, as they came."""
        yield EditStep(1, 1, 0.0, job.splats.clone(), "nothing done")


@dataclass(frozen=True, kw_only=True)
class ReplaceOnce:
    """Edits every training view by itself, once, and fits all splats to the edited views.

    What every method has to beat: views that disagree are averaged into a blur, and all that the editor changes by
    accident ends up in the scene. It is the baseline "one-time dataset update" of the ablation in Instruct-NeRF2NeRF
    (Haque et al. 2023, arXiv 2303.12789).

    Memory: that of a fit step, of a batch of views in the editor, and of all training views once more as targets.
    """

    num_steps: int = 400
    """Fit steps."""
    noise_level: float = 1.0
    """Share of the schedule that the edit of each view starts at."""
    batch_size: int = 32
    """Views per call of the editor."""

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(num_views, self.noise_level < 1)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit, then fit."""
        images, answered = job.capture.images.clone(), []
        yield EditStep(0, self.num_steps, 0.0, job.splats.clone(), "editing every view")
        for start in range(0, len(job.view_indices), self.batch_size):
            part = range(len(job.view_indices))[start : start + self.batch_size]
            edited = job.editor.edit(job.batch(part, noise_level=self.noise_level, seed=job.seed, may_leave_out=True))
            images[start : start + self.batch_size] = edited.images
            answered += [start + place for place in edited.answered]
        targets = Targets(job.capture.cameras[answered], images[answered])
        config = RefineConfig(steps=self.num_steps, seed=job.seed)
        for step in refine_splats(job.splats, targets, config=config):
            yield EditStep(step.step, self.num_steps, step.loss, step.splats.clone(), "fitting to the edited views")
