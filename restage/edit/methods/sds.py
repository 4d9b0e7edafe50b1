"""Score distillation sampling: every view is pulled towards what the diffusion model would rather see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.methods.distill import Distillation, Draw

__all__ = ["Sds", "sds_gradient"]


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


def sds_gradient(
    predicted: Float[Tensor, "1 c h w"], noise: Float[Tensor, "1 c h w"], *, schedule: Schedule, timestep: int
) -> Float[Tensor, "1 c h w"]:
    """`(1 - abar_t) (eps_hat - eps)`."""
    return (1 - schedule.alphas_cumprod[timestep]).to(torch.float32) * (predicted - noise)
