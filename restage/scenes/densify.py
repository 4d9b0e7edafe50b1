"""Where splats are missing: Markov chain Monte Carlo densification, which moves splats that hardly show to better use.

A fit with strategy "mcmc" (`fit.py`) calls it after its steps; the splats and moments lie in a `SplatOptimizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from restage.records import InputError
from restage.scenes.optimizer import SplatOptimizer
from restage.scenes.splats import Splats, rotation_matrices

__all__ = ["MonteCarlo", "Shared", "share_splats"]

MAX_COPIES = 51
"""The published code's bound on how many splats take the place of one."""
NOISE_SLOPE = 100.0
NOISE_CENTER = 0.995
"""Splats move at random only where 1 - opacity is about this or more; a sigmoid with that slope says how much."""
VISIBLE = 0.1
"""Above this opacity the noise is below 1e-4 of its full size and left out."""


class Shared(NamedTuple):
    """What each of several equal splats is like that together take the place of one."""

    opacities: Float[Tensor, " n"]
    scales: Float[Tensor, "n 3"]


def share_splats(opacities: Float[Tensor, " n"], scales: Float[Tensor, "n 3"], copies: Int[Tensor, " n"]) -> Shared:
    """Opacity and scale of `copies` equal splats that together look nearly like the one they stand for.

    Kheradmand et al., "3D Gaussian splatting as Markov chain Monte Carlo" (2024), equation 9: with N copies the
    opacity is a = 1 - (1 - o)^(1/N), and scales shrink by o / sum over i <= N, k < i of C(i-1, k) (-1)^k a^(k+1) /
    sqrt(k+1), so that the integral along a line through the centre stays. The sum over i is C(N, k+1).

    Args:
        opacities: In (0, 1).
        scales: Standard deviations, in world units.
        copies: Splats in place of each, the old one counted; more than 51 count as 51, as in the published code.
    """
    count = copies.clamp(1, MAX_COPIES).double()
    old = opacities.double()
    new = -torch.expm1(torch.log1p(-old) / count)
    binomial, power, total = torch.ones_like(new), torch.ones_like(new), torch.zeros_like(new)
    for k in range(1, int(count.max()) + 1 if len(count) else 0):
        binomial = binomial * (count - k + 1) / k  # C(N, k), which is 0 beyond N
        power = power * new
        total = total - (-1) ** k * binomial * power / k**0.5
    return Shared(new.to(opacities), scales * (old / total).to(scales)[:, None])


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """Densification as in gsplat's `MCMCStrategy`: relocate dead splats, add some up to a bound, move faint ones about.

    Kheradmand et al. 2024 (see `share_splats`). The published settings are for 30,000 steps of batches of one view.
    Here steps are given as shares of the fit, at the published shares: from 500 / 30,000 to 25,000 / 30,000. The
    published 100 steps between two looks would be 4 of 1,200, in which a splat is hardly seen once; `every` is 50.
    A look then grows the splats by more than the published 5 %, since there are fewer. The noise is published as 5e5
    times the means' learning rate of 1.6e-4; the square of the noise summed over the steps is the same with 2e5 times
    our rate of 2e-3 in 1,200 steps.
    """

    start: float = 500 / 30_000
    """Share of the fit after which splats are relocated and added, in [0, 1]."""
    stop: float = 25_000 / 30_000
    """Share of the fit after which they are not, in [0, 1]."""
    every: int = 50
    """Steps between two looks."""
    min_opacity: float = 0.005
    """Splats with less are dead and get relocated."""
    growth: float = 0.2
    """Share of new splats at each look, up to the bound of the fit."""
    noise: float = 2e5
    """Size of the random moves, in learning rates of the means times the splat's covariance; 0 for none."""
    opacity_pull: float = 0.01
    """Weight of the mean opacity in the loss, which lets splats die that are not needed."""
    scale_pull: float = 0.01
    """Weight of the mean scale (in scene sizes) in the loss."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1:
            raise InputError(f"expected 0 <= start <= stop <= 1, got {self.start} and {self.stop}")
        if self.every < 1 or not 0 < self.min_opacity < 1:
            raise InputError(f"expected every >= 1 and min_opacity in (0, 1), got {self.every} and {self.min_opacity}")
        for name in ("growth", "noise", "opacity_pull", "scale_pull"):
            if not getattr(self, name) >= 0:
                raise InputError(f"expected {name} >= 0, got {getattr(self, name)}")

    def is_due(self, step: int, share: float) -> bool:
        """Whether to look after step 1, 2, ..., when a share of the fit is done."""
        return self.start < share <= self.stop and step % self.every == 0

    def penalty(self, splats: Splats, scene_size: float) -> Float[Tensor, ""]:
        """What the loss takes for opacity and scale."""
        opacity = torch.sigmoid(splats.opacity_logits).mean()
        return self.opacity_pull * opacity + self.scale_pull / scene_size * splats.log_scales.exp().mean()

    @torch.no_grad()
    def relocate(
        self, optimizer: SplatOptimizer, is_dead: Bool[Tensor, " n"], *, max_splats: int, generator: torch.Generator
    ) -> None:
        """Put dead splats where others are, then add new ones; drawn by opacity, with replacement.

        A splat and those that come to it share its look, and start with zero moments.

        Args:
            optimizer: Holds the splats; their number grows, their order stays.
            is_dead: Which splats to move, beside those below `min_opacity`.
            max_splats: Splats are added up to this number.
            generator: Of the draws.
        """
        is_dead = is_dead | (torch.sigmoid(optimizer.splats.opacity_logits) <= self.min_opacity)
        dead = is_dead.nonzero()[:, 0]
        if len(dead) == len(is_dead):
            return
        if len(dead):
            self._put(optimizer, self._draw(optimizer, ~is_dead, len(dead), generator), dead)
        count = len(is_dead)
        num_new = min(max_splats, int((1 + self.growth) * count)) - count
        if num_new > 0:
            sources = self._draw(optimizer, torch.ones_like(is_dead), num_new, generator)
            optimizer.append(optimizer.splats[sources])
            self._put(optimizer, sources, torch.arange(count, count + num_new))

    @staticmethod
    def _draw(optimizer: SplatOptimizer, is_open: Tensor, count: int, generator: torch.Generator) -> Tensor:
        weights = torch.sigmoid(optimizer.splats.opacity_logits) * is_open
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def _put(self, optimizer: SplatOptimizer, sources: Tensor, places: Tensor) -> None:
        """Let the splats at `places` share the look of those at `sources`, which may repeat."""
        splats = optimizer.splats
        copies = torch.bincount(sources, minlength=len(splats))[sources] + 1
        opacities = torch.sigmoid(splats.opacity_logits[sources])
        shared = share_splats(opacities, splats.log_scales[sources].exp(), copies)
        highest = 1 - torch.finfo(torch.float32).eps
        splats.opacity_logits[sources] = shared.opacities.clamp(self.min_opacity, highest).logit()
        splats.log_scales[sources] = shared.scales.log()
        for tensor in splats.parameters().values():
            tensor[places] = tensor[sources]
        optimizer.zero_moments(torch.cat([sources, places]))

    @torch.no_grad()
    def shake(self, splats: Splats, rate: float, *, generator: torch.Generator) -> None:
        """Move the centres of faint splats at random, along their covariance (equation 6 of the paper).

        Args:
            splats: Changed in place.
            rate: Learning rate of the means now, in world units.
            generator: Of the moves; as many numbers are drawn as there are faint splats.
        """
        opacities = torch.sigmoid(splats.opacity_logits)
        faint = (opacities < VISIBLE).nonzero()[:, 0]
        if not self.noise or not len(faint):
            return
        size = self.noise * rate * torch.sigmoid(NOISE_SLOPE * (1 - opacities[faint] - NOISE_CENTER))
        axes = rotation_matrices(splats.rotations[faint])
        variances = (2 * splats.log_scales[faint]).exp()
        moves = torch.randn(len(faint), 3, generator=generator) * size[:, None]
        along = (axes.transpose(1, 2) @ moves[:, :, None]) * variances[:, :, None]
        splats.means[faint] += (axes @ along)[:, :, 0]
