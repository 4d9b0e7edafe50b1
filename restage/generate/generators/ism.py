"""Interval score matching from nothing (LucidDreamer), by a single-picture model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restage.generate.generators.distilled import Distilled, Draw
from restage.records import InputError

__all__ = ["Ism"]


@dataclass(frozen=True, kw_only=True)
class Ism(Distilled):
    """Gradient `scale sqrt((1 - abar_t) / abar_t) (eps_hat(x_t; y) - eps(x_s))`, x_s and x_t by inversion of a render.

    Liang et al. 2023 (arXiv 2311.11284, equation 17), with guidance 7.5 and t from 2 to 50 % of the schedule. No noise
    is drawn: x_s comes from the render by steps of DDIM without a caption, and x_t by one more, so that both
    predictions see the same picture. Their code turns renders over at random; here none is, since what is left and
    right would be lost.
    """

    num_steps: int = 450
    """Views that are rendered and moved; each takes about five calls of the model."""
    interval: int = 50
    """Steps of the schedule between s and t; published: 80, from 100 at the start."""
    stride: int = 200
    """Steps of the schedule between two stages of the inversion up to s, as published."""
    scale: float = 0.1
    """Factor on the gradient, as published; Adam does not see it but at its start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval < 1 or self.stride < 1 or self.scale <= 0:
            raise InputError(f"expected interval, stride and scale above 0, got {self}")

    def _gradient(self, draw: Draw) -> Tensor:
        t, s = draw.timestep, max(draw.timestep - self.interval, 0)
        stages = [*range(0, s, self.stride), s, t]
        x, epsilon = draw.latents, torch.zeros_like(draw.latents)
        for stage, later in itertools.pairwise(stages):
            epsilon = draw.untold(x, stage)
            now_t, later_t = (torch.tensor([step], device=x.device) for step in (stage, later))
            x = draw.schedule.add_noise(draw.schedule.to_x0(epsilon, x, now_t), epsilon, later_t)
        kept = float(draw.schedule.alphas_cumprod[t])
        return self.scale * math.sqrt((1 - kept) / kept) * (draw.towards(x, t) - epsilon)
