"""Distillation: render a view, ask a diffusion model for a gradient, move the splats; and its two plain gradients.

Methods with other gradients, as `pds.py` has, are subclasses of `Distillation`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Branches, score_model_of
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.idu import check_noise_range
from restage.records import InputError, derive_seed
from restage.scenes.config import LearningRates
from restage.scenes.fit import view_at
from restage.scenes.initial import surroundings_of
from restage.scenes.optimizer import SplatOptimizer

__all__ = ["DISTILL_RATES", "Dds", "Distillation", "Draw", "Sds", "dds_gradient", "draw_timestep", "sds_gradient"]

Latents = Float[Tensor, "1 c h w"]

DISTILL_RATES = LearningRates(means=2e-4, log_scales=2e-3, rotations=1e-3, opacity_logits=1e-2, sh=5e-3)
"""Distilled gradients are noise for the most part, which Adam turns into steps of full length: about half of what
refining to given targets uses. With the exact editor, 500 steps and one case at 64 pixels, twice these rates gave sds
and dds 0.005 and 0.009 more progress for a seventh more spill, four times these less progress and more spill still."""


@dataclass(frozen=True)
class Draw:
    """One view at one noise level, as a gradient is made from it; latents are "1 c h w"."""

    step: int  # from 0
    num_steps: int
    timestep: int
    edited: Latents  # clean latents of the current render
    source: Latents  # clean latents of the unedited view
    noise: Latents  # unit noise, the same for both
    branches: Branches
    schedule: Schedule

    def noised(self, latents: Latents) -> Latents:
        """Latents at this noise level."""
        return self.schedule.add_noise(latents, self.noise, torch.tensor([self.timestep], device=latents.device))

    def predictions(self, guidance: float | None) -> tuple[Tensor, Tensor]:
        """Noise that the model sees in the noised render, told what to do, and in the noised source, told nothing."""
        edited = self.branches.edited(self.noised(self.edited), self.timestep, guidance)
        return edited, self.branches.source(self.noised(self.source), self.timestep, guidance)


def draw_timestep(schedule: Schedule, low: float, high: float, *, seed: int) -> int:
    """A step of the schedule, drawn evenly between two shares of it."""
    top = schedule.num_train_timesteps - 1
    first, last = round(low * top), round(high * top)
    generator = torch.Generator().manual_seed(derive_seed(seed, "timestep"))
    return int(torch.randint(first, last + 1, (), generator=generator))


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Renders a view, asks a diffusion model for a gradient in its latents, moves the splats, and begins again.

    The loss whose gradient in the latents `x` it is, is `0.5 sum (x - stopped(x - g))^2`. With the mean in place of the
    sum it would be smaller by the number of elements, which Adam does not see.
    """

    num_steps: int = 1500
    """Views that are rendered and moved."""
    guidance: float | None = None
    """Guidance on the text; None for what the model is best used with."""
    lowest_noise: float = 0.02
    highest_noise: float = 0.98
    """The noise level is drawn evenly between these shares of the schedule."""
    rates: ClassVar[LearningRates] = DISTILL_RATES

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise)
        if self.num_steps < 1:
            raise InputError(f"expected at least one step, got {self.num_steps}")

    def _timestep(self, schedule: Schedule, step: int, seed: int) -> int:
        """Step of the noise schedule for a step of the method, from 0."""
        return draw_timestep(schedule, self.lowest_noise, self.highest_noise, seed=seed)

    def _gradient(self, draw: Draw) -> Tensor:
        """Gradient in the latents of the render."""
        raise NotImplementedError

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Distill."""
        model = score_model_of(job.editor)

        @functools.cache
        def prepare(view: int) -> tuple[Tensor, Branches]:
            original = job.capture.images[view : view + 1]
            branches = model.branches(original, job.request, view_index=job.view_indices[view], seed=job.seed)
            return model.encode(original).detach(), branches

        optimizer = SplatOptimizer(job.splats, self.rates, scene_size=surroundings_of(job.capture.cameras).size)
        for step in range(self.num_steps):
            seed = derive_seed(job.seed, "distill", step)
            view = view_at(job.seed, step, len(job.view_indices))
            timestep = self._timestep(model.schedule, step, seed)

            def objective(
                color: Tensor, view: int = view, step: int = step, seed: int = seed, t: int = timestep
            ) -> Tensor:
                latents = model.encode(color[None].clamp(0, 1))
                with torch.no_grad():
                    source, branches = prepare(view)
                    generator = torch.Generator().manual_seed(seed)
                    noise = torch.randn(tuple(latents.shape), generator=generator).to(latents.device)
                    draw = Draw(step, self.num_steps, t, latents.detach(), source, noise, branches, model.schedule)
                    # This loss has the given gradient in the latents, and autograd carries it on to the splats.
                    target = latents.detach() - self._gradient(draw)
                return 0.5 * (latents - target).square().sum()

            loss = optimizer.descend(job.capture.cameras[view], objective)
            note = f"distilling at step {timestep} of the noise schedule"
            yield EditStep(step + 1, self.num_steps, loss, optimizer.splats.clone(), note)


@dataclass(frozen=True, kw_only=True)
class Sds(Distillation):
    """Gradient `w(t) (eps_hat(z_t; y) - eps)` with `w = 1 - abar_t`, on one view a step.

    DreamFusion (Poole et al. 2022, arXiv 2209.14988, equation 3), with t from 0.02 to 0.98 of the schedule. Published
    guidance is 100 with a text-to-image model, which needs it; with an edit model the guidance of editing is used, as
    in the ablation of Instruct-NeRF2NeRF (arXiv 2303.12789). Published runs take 10,000 steps and more from nothing;
    here a fitted scene is moved, in as many steps as the miniature's fit is long.

    Memory: that of a fit step, of one view in the model, and of the latents of all training views.
    """

    def _gradient(self, draw: Draw) -> Tensor:
        predicted = draw.branches.edited(draw.noised(draw.edited), draw.timestep, self.guidance)
        return sds_gradient(predicted, draw.noise, schedule=draw.schedule, timestep=draw.timestep)


def sds_gradient(predicted: Latents, noise: Latents, *, schedule: Schedule, timestep: int) -> Latents:
    """`(1 - abar_t) (eps_hat - eps)`."""
    return (1 - schedule.alphas_cumprod[timestep]).to(torch.float32) * (predicted - noise)


@dataclass(frozen=True, kw_only=True)
class Dds(Distillation):
    """Gradient `eps_hat(z_e, y_e) - eps_hat(z_s, y_s)`, both at one noise level with one noise.

    Hertz et al. 2023 (arXiv 2304.07090, equation 3): what the model dislikes about both views cancels. Published: t
    from 50 to 948 of 1,000, guidance 7.5 with a text-to-image model, 200 steps on one picture. Here as many steps as
    the miniature's fit is long, and the guidance of editing where the model is an edit model; its source branch is
    told nothing and keeps its guidance on the original view.

    Memory: that of a fit step, of two views in the model, and of the latents of all training views.
    """

    lowest_noise: float = 0.05
    highest_noise: float = 0.949
    """The noise level is drawn evenly between these shares of the schedule: 50 to 948 of 1,000."""

    def _gradient(self, draw: Draw) -> Tensor:
        return dds_gradient(*draw.predictions(self.guidance))


def dds_gradient(edited: Latents, source: Latents) -> Latents:
    """Difference of the two predictions of noise."""
    return edited - source
