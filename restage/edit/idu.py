"""Iterative dataset update (Instruct-NeRF2NeRF): fitting and editing take turns, one view at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from restage.edit.job import EditJob, EditStep
from restage.records import InputError, derive_seed
from restage.scenes.fit import RefineConfig, Targets, refine_splats, render_views
from restage.scenes.splats import Splats

__all__ = ["Idu"]


@dataclass(frozen=True, kw_only=True)
class Idu:
    """Every few fit steps one view is rendered, edited and put in place of its training view.

    The recipe of Instruct-NeRF2NeRF (Haque et al. 2023, arXiv 2303.12789, section 3.2): the edit starts from the
    current render with noise drawn from [0.02, 0.98] of the schedule and is conditioned on the original view, so
    the views drift towards one edit that they agree on. Theirs runs for 15,000 steps or more with L1 + LPIPS on
    patches; here the number of steps is scaled to the miniature and the loss is the fit's own.
    """

    num_steps: int = 900
    """Fit steps; the edits are a share of `edit_every` of them."""
    edit_every: int = 10
    """Fit steps from one edit to the next."""
    lowest_noise: float = 0.02
    highest_noise: float = 0.98
    """The noise level of each edit is drawn evenly between these shares of the schedule."""

    def __post_init__(self) -> None:
        if not 0 < self.lowest_noise <= self.highest_noise <= 1 or self.edit_every < 1:
            raise InputError(
                f"expected 0 < lowest_noise <= highest_noise <= 1 and edit_every >= 1, got {self.lowest_noise}, "
                f"{self.highest_noise} and {self.edit_every}"
            )

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Take turns; views come in a shuffled order, each once before any comes again."""
        targets = Targets(job.capture.cameras, job.capture.images)
        config = RefineConfig(steps=self.num_steps, seed=job.seed)
        order = _view_order(job, 1 + self.num_steps // self.edit_every)
        self._edit_view(job, order[0], 0, job.splats, targets)
        for step in refine_splats(job.splats, targets, config=config):
            turn, is_turn = step.step // self.edit_every, step.step % self.edit_every == 0
            if is_turn and step.step < self.num_steps:
                self._edit_view(job, order[turn], turn, step.splats, targets)
            yield EditStep(step.step, self.num_steps, step.loss, step.splats.clone(), f"{turn + 1} views edited so far")

    def _edit_view(self, job: EditJob, view: int, turn: int, splats: Splats, targets: Targets) -> None:
        seed = derive_seed(job.seed, "idu", turn)
        noise_level = float(np.random.default_rng(seed).uniform(self.lowest_noise, self.highest_noise))
        edited = job.editor.edit(
            render_views(splats, job.capture.cameras[view]),
            job.capture.images[view : view + 1],
            job.request,
            view_indices=(job.view_indices[view],),
            noise_level=noise_level,
            seed=seed,
        )
        targets.replace(view, edited.images[0])


def _view_order(job: EditJob, count: int) -> list[int]:
    generator = np.random.default_rng(derive_seed(job.seed, "idu order"))
    num_views = len(job.view_indices)
    rounds = [generator.permutation(num_views) for _ in range(-(-count // num_views))]
    return [int(view) for view in np.concatenate(rounds)[:count]]
