"""Iterative dataset update: fitting and editing take turns, one view at a time or all views now and then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from restage.edit.editors.interface import AskedPictures
from restage.edit.job import EditJob, EditStep
from restage.records import InputError, derive_seed
from restage.scenes.config import RefineConfig
from restage.scenes.fit import Targets, refine_splats, render_views
from restage.scenes.splats import Splats

__all__ = ["Idu", "Igs2gs", "Turn", "check_noise_range", "edit_turn", "turns"]


@dataclass(frozen=True, kw_only=True)
class Idu:
    """Every few fit steps one view is rendered, edited and put in place of its training view.

    The recipe of Instruct-NeRF2NeRF (Haque et al. 2023, arXiv 2303.12789, section 3.2): the edit starts from the
    current render with noise drawn from [0.02, 0.98] of the schedule and is conditioned on the original view, so
    the views drift towards one edit that they agree on. Theirs runs for 15,000 steps or more with L1 + LPIPS on
    patches; here the number of steps is scaled to the miniature and the loss is the fit's own.

    Memory: that of a fit step, of one view in the editor, and of all training views once more as targets.
    """

    num_steps: int = 900
    """Fit steps; the edits are a share of `edit_every` of them. Published: 15,000, the number of an original fit; that
    of the miniature has 1,500."""
    edit_every: int = 10
    """Fit steps from one edit to the next, as published."""
    lowest_noise: float = 0.02
    highest_noise: float = 0.98
    """The noise level of each edit is drawn evenly between these shares of the schedule."""

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise, edit_every=self.edit_every)

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(-(-self.num_steps // self.edit_every), True)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Take turns; views come in a shuffled order, each once before any comes again."""
        targets = Targets(job.capture.cameras, job.capture.images)
        config = RefineConfig(steps=self.num_steps, seed=job.seed)
        plan = turns(len(job.view_indices), self.lowest_noise, self.highest_noise, seed=job.seed)
        turn = next(plan)
        edit_turn(job, turn, job.splats, targets)
        for step in refine_splats(job.splats, targets, config=config):
            if step.step % self.edit_every == 0 and step.step < self.num_steps:
                turn = next(plan)
                edit_turn(job, turn, step.splats, targets)
            note = f"{turn.number + 1} views edited so far"
            yield EditStep(step.step, self.num_steps, step.loss, step.splats.clone(), note)


class Turn(NamedTuple):
    """One edit of one view."""

    number: int  # from 0
    view: int  # index among the training views
    noise_level: float
    seed: int


def turns(num_views: int, lowest_noise: float, highest_noise: float, *, seed: int) -> Iterator[Turn]:
    """Turns without end: views in shuffled rounds, noise levels drawn evenly between the two shares."""
    order, number = np.random.default_rng(derive_seed(seed, "idu order")), 0
    while True:
        # Whole rounds, so that no view is edited twice while another still shows the old scene.
        for view in order.permutation(num_views):
            turn_seed = derive_seed(seed, "idu", number)
            noise_level = float(np.random.default_rng(turn_seed).uniform(lowest_noise, highest_noise))
            yield Turn(number, int(view), noise_level, turn_seed)
            number += 1


def edit_turn(job: EditJob, turn: Turn, splats: Splats, targets: Targets) -> None:
    """Render a view, edit it, and put it in place of its target."""
    render = render_views(splats, job.capture.cameras[turn.view])
    batch = job.batch([turn.view], render, noise_level=turn.noise_level, seed=turn.seed, may_leave_out=True)
    edited = job.editor.edit(batch)
    if edited.answered:  # else the view stays as it was edited before, or not at all
        targets.replace(turn.view, edited.images[0])


def check_noise_range(lowest_noise: float, highest_noise: float, *, edit_every: int = 1) -> None:
    """See that noise levels and the number of steps between edits make sense."""
    if not 0 < lowest_noise <= highest_noise <= 1 or edit_every < 1:
        raise InputError(
            f"expected 0 < lowest_noise <= highest_noise <= 1 and edit_every >= 1, got {lowest_noise}, "
            f"{highest_noise} and {edit_every}"
        )


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

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(-(-self.num_steps // self.edit_every) * num_views, True)

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
