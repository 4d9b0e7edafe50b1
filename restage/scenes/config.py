"""The settings of fits, apart from what they steer: the command line reads them without loading torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from restage.records import InputError, added_later

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FitConfig", "LearningRates", "MAX_DEGREE", "PHOTOGRAPHS", "PhotometricLoss", "RefineConfig", "ScenesConfig"]
__all__ += ["SMALL_SIDE", "for_size"]


MAX_DEGREE = 3
"""Highest degree of spherical harmonics, the default of 3D Gaussian splatting."""


@dataclass(frozen=True, kw_only=True)
class PhotometricLoss:
    """(1 - ssim_share) x pixel error + ssim_share x (1 - SSIM); the pixel error mixes absolute and squared error.

    With l2_share = 0 and ssim_share = 0.2 this is the loss of Kerbl et al., "3D Gaussian splatting" (2023), equation 7.
    """

    l2_share: float = 0.2
    """Share of squared error (times 10) in the pixel error, in [0, 1]; the rest is absolute error."""
    ssim_share: float = 0.0
    """Share of 1 - SSIM (an 11 x 11 Gaussian window) in the loss, in [0, 1]."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"expected {name} in [0, 1], got {value}")

    def __call__(self, color: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return `losses.photometric_loss` with these shares."""
        from restage.scenes.losses import photometric_loss

        return photometric_loss(color, target, weights, l2_share=self.l2_share, ssim_share=self.ssim_share)


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Adam's step for each group of parameters; 0 freezes the group. Found by trial (docs/log/2026-11-22-scenes.md)."""

    means: float = 2e-3
    """In units of the scene's size, or of a splat's distance from its center: see `SplatOptimizer.center`."""
    log_scales: float = 1e-2
    rotations: float = 5e-3
    opacity_logits: float = 5e-2
    sh: float = 1e-2
    """Rate of degree 0; the higher degrees move at a twentieth of it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 10:
                raise InputError(f"expected the learning rate of {name} in [0, 10), got {value}")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How splats are fitted to a capture."""

    steps: int = 1500
    """One view a step."""
    num_splats: int = 6000
    """Upper bound; unseen and floating splats are dropped on the way."""
    sh_degree: int = 0
    """Degree of the spherical harmonics, 0 to 3; 0 gives colors that do not depend on the direction."""
    loss: PhotometricLoss = field(default_factory=lambda: PhotometricLoss(ssim_share=0.2))
    """What a render is compared by."""
    rates: LearningRates = field(default_factory=LearningRates)
    """Learning rates at the start."""
    has_rates_by_distance: bool = False
    """Whether the learning rate of the means is in units of a splat's distance from the scene's center, rather than of
    the scene's size: for captures that show what is far away, too."""
    means_decay: float = 0.01
    """Share of the means' learning rate that is left at the end, in (0, 1]; as in 3D Gaussian splatting."""
    other_decay: float = 1.0
    """Share of all other learning rates that is left at the end, in (0, 1]."""
    coarse_share: float = 0.0
    """Share of the fit, its beginning, that is done at half the size, where a step costs less; in [0, 1]."""
    quarter_share: float = added_later(0.0)
    """Share of the fit, its very beginning, that is done at a quarter of the size; in [0, 1]."""
    cooldown_share: float = added_later(0.0)
    """Share of the fit, its end, over which all learning rates fall linearly to zero as well; in [0, 1]."""
    shell_share: float = 0.15
    """Share of splats put on a far shell, for sky and background."""
    shell_radius: float = 4.0
    """Radius of the far shell, in scene sizes, above 1."""
    scale_share: float = 1.0
    """Standard deviation of a splat at the start, as a share of the distance to its neighbors."""
    near_share: float = 0.25
    """Splats in front of a training camera and nearer to it than this share of the scene's size are dropped."""
    cull_every: int = 100
    """Steps between looks for splats to drop."""
    fits_exposure: bool = False
    """Whether each training view gets a color transform of its own, for captures whose brightness changes; held-out
    views are rendered at the mean exposure."""
    stop_gain: float = 0.0
    """Stop early when three passes through the training views are not better than the three before by this share of
    the training loss; 0 for never."""
    time_budget_s: Annotated[float | None, arg(name="time-budget")] = None
    """Seconds that fitting may take at most; learning rates have fallen by then. Such a fit does not repeat bit for
    bit."""
    seed: int = 0
    """Seed for the initial splats and the order of the views."""

    def __post_init__(self) -> None:
        if not (1 <= self.steps <= 1_000_000 and 1 <= self.num_splats <= 5_000_000 and self.cull_every >= 1):
            raise InputError(f"expected positive steps, splats and cull_every, got {self}")
        if not 0 <= self.sh_degree <= MAX_DEGREE:
            raise InputError(f"expected sh_degree from 0 to {MAX_DEGREE}, got {self.sh_degree}")
        for name in ("coarse_share", "quarter_share", "cooldown_share", "shell_share", "near_share", "stop_gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        for name in ("means_decay", "other_decay", "scale_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"expected {name} above 0 and at most 1, got {getattr(self, name)}")
        if not 1 < self.shell_radius < 1e6:
            raise InputError(f"expected shell_radius above 1, got {self.shell_radius}")
        if self.time_budget_s is not None and not 0 < self.time_budget_s < math.inf:
            raise InputError(f"expected a time budget above 0 s, got {self.time_budget_s}")


PHOTOGRAPHS = FitConfig(
    steps=1200,
    num_splats=45_000,
    rates=LearningRates(means=3e-3, log_scales=2e-2),
    has_rates_by_distance=True,
    means_decay=0.05,
    shell_radius=10.0,
    scale_share=0.5,
)
"""For captures of photographs, which show more than the miniature world; found on the bear, see
docs/log/2026-11-22-scenes.md. For views of up to SMALL_SIDE pixels; see `for_size`."""
SMALL_SIDE = 200


def for_size(config: FitConfig, side: int) -> FitConfig:
    """Return settings for photographs whose longer side has `side` pixels.

    What is as in PHOTOGRAPHS follows the size, all else stays: more pixels get more splats, and more steps to place
    them, the first of them at a quarter and at half the size, where a step costs less. Found on the bear, see
    docs/log/2026-11-30-sizes.md.
    """
    if side <= SMALL_SIDE:
        return config
    coarse_share = round(min(max(0.4 + 0.2 * math.log2(side / 512), 0.2), 0.7), 2)
    suited = replace(
        PHOTOGRAPHS,
        steps=1600,
        num_splats=1000 * round(45 * (side / 160) ** 0.7),
        coarse_share=coarse_share,
        quarter_share=coarse_share / 4,
        cooldown_share=0.4,
    )
    values = {name: (getattr(config, name), getattr(PHOTOGRAPHS, name)) for name in vars(PHOTOGRAPHS)}
    return replace(suited, **{name: own for name, (own, usual) in values.items() if own != usual})


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How given splats are moved towards other targets."""

    steps: int = 500
    rates: LearningRates = field(default_factory=lambda: LearningRates(means=5e-4, log_scales=5e-3))
    loss: PhotometricLoss = field(default_factory=PhotometricLoss)
    cooldown_share: float = 0.0
    """Share of the steps, at the end, over which all learning rates fall linearly to zero. Each step sees one view;
    without it the splats end where the last few views pushed them."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.cooldown_share <= 1:
            raise InputError(f"expected cooldown_share in [0, 1], got {self.cooldown_share}")


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """How the captures of a run are fitted."""

    fit: FitConfig = field(default_factory=FitConfig)
    """How every scene is fitted."""
