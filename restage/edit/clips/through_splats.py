"""The road through splats, for clips of scenes that stand still: fit them, edit them, render the path again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from restage.edit.clips.job import ClipJob, ClipStep, Windowed
from restage.edit.job import EditJob
from restage.edit.methods.restage import Restage
from restage.edit.methods.video import difference_masks
from restage.records import InputError
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.fit import fit_splats, render_views

__all__ = ["ThroughSplats"]


@dataclass(frozen=True, kw_only=True)
class ThroughSplats(Windowed):
    """Fits splats to the clip, edits these with the method `restage`, and adds what that changed to the frames.

    In splats a point has one color by construction, so this is what other methods of clips are to come close to, where
    nothing but the camera moves and its path is known: orbits and still clips of `restage clip`.

    Memory: that of a fit and an edit of a scene, and of a window as pictures.
    """

    window: int = 64
    overlap: int = 0
    """Frames that a window shares with the one before; each window is a scene of its own."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=800))
    """How splats are fitted to the clip."""
    edit: Restage = field(default_factory=Restage)
    """How they are edited."""

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Fit, edit, render."""
        if job.cameras is None:
            raise InputError(
                "the road through splats needs a clip of a scene that stands still, with known cameras: an orbit or a "
                "clip of --motion still from restage clip; fit a film by: restage fit FILM, and edit that run"
            )
        total, done, splats = self.fit.steps + self.edit.num_steps, 0, None
        capture = Capture(
            name="clip",
            cameras=job.cameras,
            images=job.frames,
            file_names=tuple(f"frame_{index}" for index in job.indices),
            points=torch.zeros(0, 3),
            point_colors=torch.zeros(0, 3),
            train_indices=tuple(range(len(job.frames))),
            held_out_indices=(),
        )
        for step in fit_splats(capture, replace(self.fit, seed=job.seed % 2**31)):
            done, splats = step.step, step.splats
            if done % REPORT_EVERY == 0:
                yield ClipStep(done, total, "fitting splats to the clip")
        assert splats is not None
        before = splats.clone()
        scene = EditJob(before, capture, job.indices, job.request, job.editor, job.seed)
        after = before
        for edited in self.edit.run(scene):
            after = edited.splats
            if edited.step % REPORT_EVERY == 0:
                yield ClipStep(self.fit.steps + edited.step, total, edited.note)
        # What the fit has lost of the frames is in both renders, and cancels.
        renders = [render_views(each, job.cameras) for each in (before, after)]
        images = (job.frames + renders[1] - renders[0]).clamp(0, 1)
        masks = difference_masks(renders[1], renders[0], CHANGE)
        yield ClipStep(total, total, "rendered along the path", torch.lerp(job.frames, images, masks[:, None]), masks)


REPORT_EVERY = 20
CHANGE = 0.01
"""Renders that differ by less than this, mean over channels, show no edit."""
