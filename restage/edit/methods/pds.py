"""Posterior distillation sampling, and DreamCatalyst: delta denoising with a pull back to the unedited view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.methods.distill import Distillation, Draw, Latents, draw_timestep
from restage.records import InputError
from restage.scenes.config import LearningRates

__all__ = ["DreamCatalyst", "Pds", "PdsWeights", "dreamcatalyst_weights", "pds_gradient", "pds_weights", "rest_share"]

PDS_RATES = LearningRates(means=4e-4, log_scales=4e-3, rotations=2e-3, opacity_logits=2e-2, sh=1e-2)
"""Twice those of the other distillations: its pull on a picture, `chi r`, goes from 6.5 at step 20 of the schedule to
0.01 at step 979, Adam measures its steps by the rare large gradients, and most steps are short. 500 steps with the
exact editor, one case at 64 pixels: progress 0.81 at the rates of the others, 0.84 at twice these and at four times."""


@dataclass(frozen=True, kw_only=True)
class Pds(Distillation):
    """Gradient `psi (x0_e - x0_s) + chi (eps_e - eps_s)` from matching the stochastic latents of two posteriors.

    Koo et al. 2024 (arXiv 2311.13831, equations 9 to 14). With the posterior from t to t - 1, which is the default
    here, the identity term psi is zero (see `pds_weights`) and what is left is the delta denoising score with other
    weights. The published code steps back by two with betas of one step, and only so has an identity term. That term
    pulls back as hard as the edit pulls: a model that knows the edited view leads only to a share
    `chi r / (psi + chi r)` of the way, `r = sqrt(abar / (1 - abar))`, which is 0.51 to 0.69 for stride 2 on the cosine
    schedule (`rest_share`), however long it runs and at whatever rate. Published settings make up for it by guidance
    100 with a text-to-image model, which asks for a multiple of the edit; an edit model at the guidance of editing asks
    for the edit itself, so a stride of 2 stops halfway. Published: 30,000 steps; here as many as the miniature's fit
    is long.

    Memory: that of a fit step, of two views in the model, and of the latents of all training views.
    """

    stride: int = 1
    """Steps of the schedule that the posterior goes back; 1 as the formula has it, 2 as in the published code."""
    rates: ClassVar[LearningRates] = PDS_RATES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise InputError(f"expected a stride of at least 1, got {self.stride}")

    def _timestep(self, schedule: Schedule, step: int, seed: int) -> int:
        return max(self.stride, draw_timestep(schedule, self.lowest_noise, self.highest_noise, seed=seed))

    def _gradient(self, draw: Draw) -> Tensor:
        weights = pds_weights(draw.schedule, draw.timestep, self.stride)
        edited, source = draw.predictions(self.guidance)
        return pds_gradient(draw.edited - draw.source, edited - source, weights)


class PdsWeights(NamedTuple):
    """How much each part of the gradient counts at a noise level."""

    identity: float  # psi, of the difference of the clean latents
    edit: float  # chi, of the difference of the predicted noises


def pds_weights(schedule: Schedule, timestep: int, stride: int) -> PdsWeights:
    """Weights of the two parts, from the posterior of a step back to `t' = t - stride`.

    That is `x_t' ~ N(c0 x0 + c1 x_t, sigma^2)`.
    `psi = (sqrt(abar_t') - c0 - c1 sqrt(abar_t)) / sigma` and `chi = c0 sqrt((1 - abar_t) / abar_t) / sigma`, with
    `c0 = sqrt(abar_t') beta / (1 - abar_t)`, `c1 = sqrt(1 - beta) (1 - abar_t') / (1 - abar_t)`, and
    `sigma^2 = beta (1 - abar_t') / (1 - abar_t)`; beta is that of the one step from t - 1 to t, whatever the stride.
    """
    kept, before, one_before = (float(schedule.alphas_cumprod[timestep - back]) for back in (0, stride, 1))
    # Of one step also where the stride is more, as the published code has it: only so does psi not vanish.
    beta = 1 - kept / one_before
    c0 = math.sqrt(before) * beta / (1 - kept)
    c1 = math.sqrt(1 - beta) * (1 - before) / (1 - kept)
    sigma = math.sqrt(beta * (1 - before) / (1 - kept))
    identity = (math.sqrt(before) - c0 - c1 * math.sqrt(kept)) / sigma
    return PdsWeights(identity, c0 * math.sqrt((1 - kept) / kept) / sigma)


def pds_gradient(clean: Latents, noise: Latents, weights: PdsWeights) -> Latents:
    """Weighted sum of the differences, edited minus source, of the clean latents and of the predicted noises."""
    return weights.identity * clean + weights.edit * noise


def rest_share(weights: PdsWeights, schedule: Schedule, timestep: int) -> float:
    """Share of the way from the unedited to the edited view at which the gradient of a model that knows both is zero.

    `psi (x - x_s) + chi r (x - x_e) = 0` at `x = x_s + share (x_e - x_s)`, since such a model predicts noises that
    differ by `r (x - x_e)`, with `r = sqrt(abar_t / (1 - abar_t))`.
    """
    kept = float(schedule.alphas_cumprod[timestep])
    pull = weights.edit * math.sqrt(kept / (1 - kept))
    return pull / (pull + weights.identity)


@dataclass(frozen=True, kw_only=True)
class DreamCatalyst(Distillation):
    """Gradient `(delta + gamma tau^(1/e)) (eps_e - eps_s) + psi e^tau (x0_e - x0_s)`, tau falling from 0.9 to 0.2.

    Kim et al. 2024 (arXiv 2407.11394): the sum of PDS with weights chosen for the noise level, and noise levels that
    fall as in sampling. tau is the share of the schedule. The source branch uses guidance on the original only. The
    published runs take 1,000 steps in their fast mode and 3,000 in the other; here as many as the miniature's fit is
    long. Their UNet is used with FreeU, which is left out: it is a change of the model, not of the method.

    Its pull back lets go as the noise falls: a model that knows the edited view leads to 0.45 of the way at tau = 0.9
    and to 0.95 at 0.2 (`rest_share`), so the run ends near it.

    Memory: that of a fit step, of two views in the model, and of the latents of all training views.
    """

    delta: float = 0.2
    """Weight of the edit at every noise level."""
    gamma: float = 0.8
    """Weight of the edit that grows with the noise."""
    psi: float = 0.075
    """Weight of the pull back to the unedited view."""
    highest_noise: float = 0.9
    """Share of the schedule at the beginning."""
    lowest_noise: float = 0.2
    """Share of the schedule at the end."""

    def _timestep(self, schedule: Schedule, step: int, seed: int) -> int:
        share = step / max(1, self.num_steps - 1)
        tau = self.highest_noise + share * (self.lowest_noise - self.highest_noise)
        return round(tau * (schedule.num_train_timesteps - 1))

    def _gradient(self, draw: Draw) -> Tensor:
        tau = draw.timestep / (draw.schedule.num_train_timesteps - 1)
        edited, source = draw.predictions(self.guidance)
        return pds_gradient(draw.edited - draw.source, edited - source, dreamcatalyst_weights(self, tau))


def dreamcatalyst_weights(method: DreamCatalyst, tau: float) -> PdsWeights:
    """Weights of pull back and edit at a share of the schedule."""
    return PdsWeights(method.psi * math.exp(tau), method.delta + method.gamma * tau ** (1 / math.e))
