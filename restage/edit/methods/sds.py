"""Score distillation sampling: every view is pulled towards what the diffusion model would rather see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.distill import Draw, distill, draw_timestep
from restage.edit.methods.idu import check_noise_range

__all__ = ["Sds", "sds_gradient"]


@dataclass(frozen=True, kw_only=True)
class Sds:
    """Gradient `w(t) (eps_hat(z_t; y) - eps)` with `w = 1 - abar_t`, on one view a step.

    DreamFusion (Poole et al. 2022, arXiv 2209.14988, equation 3), with t from 0.02 to 0.98 of the schedule. Published
    guidance is 100 with a text-to-image model, which needs it; with an edit model the guidance of editing is used, as
    in the ablation of Instruct-NeRF2NeRF (arXiv 2303.12789). Published runs take 10,000 steps and more from nothing;
    here a fitted scene is moved, in as many steps as the miniature's fit is long.

    Memory: that of a fit step, of one view in the model, and of the latents of all training views.
    """

    num_steps: int = 1500
    """Views that are rendered and moved."""
    guidance: float | None = None
    """Of the text; None for what the model is best used with. Published: 100, with a text-to-image model."""
    lowest_noise: float = 0.02
    highest_noise: float = 0.98
    """The noise level is drawn evenly between these shares of the schedule."""

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Distil."""

        def timestep_of(schedule: Schedule, step: int, seed: int) -> int:
            return draw_timestep(schedule, self.lowest_noise, self.highest_noise, seed=seed)

        def gradient(draw: Draw) -> Tensor:
            predicted = draw.branches.edited(draw.noised(draw.edited), draw.timestep, self.guidance)
            return sds_gradient(predicted, draw.noise, schedule=draw.schedule, timestep=draw.timestep)

        yield from distill(job, num_steps=self.num_steps, timestep_of=timestep_of, gradient=gradient)


def sds_gradient(
    predicted: Float[Tensor, "1 c h w"], noise: Float[Tensor, "1 c h w"], *, schedule: Schedule, timestep: int
) -> Float[Tensor, "1 c h w"]:
    """`(1 - abar_t) (eps_hat - eps)`."""
    return (1 - schedule.alphas_cumprod[timestep]).to(torch.float32) * (predicted - noise)
