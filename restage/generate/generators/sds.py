"""Score distillation sampling from nothing (DreamFusion), by a single-picture model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from restage.edit.methods.distill import sds_gradient
from restage.generate.generators.distilled import Distilled, Draw

__all__ = ["Sds"]


@dataclass(frozen=True, kw_only=True)
class Sds(Distilled):
    """Gradient `(1 - abar_t) (eps_hat(z_t; y) - eps)` (Poole et al. 2022, arXiv 2209.14988, equation 3).

    Published with Stable Diffusion (threestudio's dreamfusion-sd): guidance 100, t from 2 to 98 % of the schedule,
    10,000 steps of Adam, captions that say the side that is seen, a blob to start from: the preset `sd15`. The
    defaults are for the miniature.
    """

    def _gradient(self, draw: Draw) -> Tensor:
        predicted = draw.towards(draw.noised(), draw.timestep)
        return sds_gradient(predicted, draw.noise, schedule=draw.schedule, timestep=draw.timestep)
