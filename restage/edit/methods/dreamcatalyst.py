"""DreamCatalyst: distillation whose noise falls over the run, and whose pull back grows with the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.edit.methods.distill import Distillation, Draw
from restage.edit.methods.pds import PdsWeights, pds_gradient

__all__ = ["DreamCatalyst", "dreamcatalyst_weights"]


@dataclass(frozen=True, kw_only=True)
class DreamCatalyst(Distillation):
    """Gradient `(delta + gamma tau^(1/e)) (eps_e - eps_s) + psi e^tau (x0_e - x0_s)`, tau falling from 0.9 to 0.2.

    Kim et al. 2024 (arXiv 2407.11394): the sum of PDS with weights chosen for the noise level, and noise levels that
    fall as in sampling. tau is the share of the schedule. The source branch uses guidance on the original only. The
    published runs take 1,000 steps in their fast mode and 3,000 in the other; here as many as the miniature's fit is
    long. Their UNet is used with FreeU, which is left out: it is a change of the model, not of the method.

    Its pull back lets go as the noise falls: a model that knows the edited view leads to 0.45 of the way at tau = 0.9
    and to 0.95 at 0.2 (`pds.rest_share`), so the run ends near it.

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
