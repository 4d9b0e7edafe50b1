"""What distillation starts from: a gray ball of splats where the object will be, on a ground, under a sky."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.generate.rig import Rig
from restage.records import InputError, derive_seed
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Blob", "Start"]

GOLDEN_ANGLE_RAD = math.pi * (3 - math.sqrt(5))


class Start(NamedTuple):
    """Splats to start from; those of ground and sky come first."""

    splats: Splats
    num_around: int
    """Splats of ground and sky, which get colors and stay where they are."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """How many splats there are, and how large the ball is; lengths are shares of the cameras' distance."""

    num_splats: int = 3000
    """Splats of the ball; DreamGaussian has 5,000."""
    num_ground: int = 1500
    num_sky: int = 500
    radius: float = 0.15
    """Radius of the ball, which stands on the ground."""
    opacity: float = 0.5
    """Opacity of a splat of the ball. In DreamGaussian it is 0.1, and objects appear in the mist; the miniature's model
    takes mist for ground that it has to clear, and a solid thing for an object that it has to paint and shape."""

    def __post_init__(self) -> None:
        if min(self.num_splats, self.num_ground, self.num_sky) < 1 or not (0 < self.opacity < 1 and self.radius > 0):
            raise InputError(f"expected splats of each kind, an opacity in (0, 1) and a radius above 0, got {self}")

    def make(self, rig: Rig, seed: int) -> Start:
        """Lay out ground and sky, and fill the ball."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "blob"))
        ground, ground_spacing = _disc(self.num_ground, 2.5 * rig.distance)
        sky = _dome(self.num_sky, 2.8 * rig.distance)
        radius = self.radius * rig.distance
        directions = torch.nn.functional.normalize(torch.randn(self.num_splats, 3, generator=generator), dim=1)
        ball = radius * torch.rand(self.num_splats, 1, generator=generator) ** (1 / 3) * directions
        ball[:, 2] += radius
        scales = torch.cat([
            ground_spacing[:, None] * torch.tensor([1.0, 1.0, 0.05]),
            torch.full((self.num_sky, 3), 2.8 * rig.distance * math.sqrt(2 / self.num_sky)),
            torch.full((self.num_splats, 3), radius / self.num_splats ** (1 / 3)),
        ])  # fmt: skip
        means = torch.cat([ground, sky, ball])
        opacities = torch.full((len(means),), 0.95)
        opacities[-self.num_splats :] = self.opacity
        colors = 0.5 + 0.05 * torch.randn(len(means), 3, generator=generator)
        splats = Splats(
            means=means,
            log_scales=scales.log(),
            rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(means), 1),
            opacity_logits=opacities.logit(),
            sh=((colors - 0.5) / SH_C0)[:, None],
        )
        return Start(splats, self.num_ground + self.num_sky)


def _disc(count: int, radius: float) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Points of a disc at z = 0, denser towards its middle, and their distances from each other there."""
    shares = (torch.arange(count) + 0.5) / count
    # As the cameras see it, near ground is larger: the density falls with the distance from the middle.
    distances, angles = radius * shares**0.8, torch.arange(count) * GOLDEN_ANGLE_RAD
    points = torch.stack([distances * angles.cos(), distances * angles.sin(), torch.zeros(count)], dim=1)
    density = count / (2 * math.pi * 0.8 * radius**2 * shares**0.6)
    return points, 0.7 * density**-0.5


def _dome(count: int, radius: float) -> Float[Tensor, "n 3"]:
    """Points of a sphere, evenly spaced from a little below the horizon up to where no camera looks."""
    heights = torch.linspace(-0.05, 0.8, count)
    level, angles = (1 - heights.square()).sqrt(), torch.arange(count) * GOLDEN_ANGLE_RAD
    return radius * torch.stack([level * angles.cos(), level * angles.sin(), heights], dim=1)
