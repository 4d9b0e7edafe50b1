"""Iterative dataset update for splats (Instruct-GS2GS): now and then all views are edited again, then fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from restage.edit.job import EditJob, EditStep
from restage.edit.methods.idu import Turn, check_noise_range, edit_turn
from restage.records import derive_seed
from restage.scenes.fit import RefineConfig, Targets, refine_splats

__all__ = ["Igs2gs"]


@dataclass(frozen=True, kw_only=True)
class Igs2gs:
    """All views are edited, one after another, from renders of the scene as it then is; between, all are fitted to.

    Instruct-GS2GS (Vachha and Haque 2024, instruct-gs2gs.github.io; code of January 2024): every 2,500 of 7,500 steps
    all views are edited with noise drawn from [0.7, 0.98] of the schedule, guidance 12.5 and 1.5 with InstructPix2Pix.
    Here steps are a fifteenth of that, as the miniature's fit is a twentieth of the original's 30,000, and the
    guidance is what the editor is best used with. Its page names L1 + LPIPS as the loss, its code uses the one of the
    fit, as is done here.

    Memory: that of a fit step, of one view in the editor, and of all training views once more as targets.
    """

    num_steps: int = 510
    """Fit steps."""
    edit_every: int = 170
    """Fit steps from one edit of all views to the next."""
    lowest_noise: float = 0.7
    highest_noise: float = 0.98
    """The noise level of each edit is drawn evenly between these shares of the schedule."""

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise, edit_every=self.edit_every)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit all, fit, and again."""
        targets = Targets(job.capture.cameras, job.capture.images)
        # One fit over all rounds: starting anew would throw the optimizer's moments away at each edit.
        fitting = refine_splats(job.splats, targets, config=RefineConfig(steps=self.num_steps, seed=job.seed))
        splats, done = job.splats.clone(), 0
        while done < self.num_steps:
            number = done // self.edit_every
            for view in range(len(job.view_indices)):
                seed = derive_seed(job.seed, "igs2gs", number, view)
                noise_level = float(np.random.default_rng(seed).uniform(self.lowest_noise, self.highest_noise))
                edit_turn(job, Turn(number, view, noise_level, seed), splats, targets)
                yield EditStep(done, self.num_steps, 0.0, splats, f"round {number + 1}: {view + 1} views edited")
            for _ in range(min(self.edit_every, self.num_steps - done)):
                step = next(fitting)
                done, splats = step.step, step.splats.clone()
                yield EditStep(done, self.num_steps, step.loss, splats, f"round {number + 1}: fitting")
