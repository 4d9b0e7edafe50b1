"""How far a rendered view is from what it should be: absolute and squared error, and structural similarity.

The step that fitting and editing share (`optimizer.py`) calls a `PhotometricLoss`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.ssim import MARGIN, ssim_map

__all__ = ["PhotometricLoss"]


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

    def __call__(
        self, color: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"], weights: Float[Tensor, "h w"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean over the pixels, each times its weight (>= 0, default 1)."""
        difference = color - target
        error = (1 - self.l2_share) * difference.abs() + 10 * self.l2_share * difference.square()
        loss = error.mean() if weights is None else (error * weights).mean()
        if not self.ssim_share:
            return loss
        if weights is None:
            unlike = 1 - ssim_map(color, target)
        else:  # windows reach beyond the pixels that count: nothing is to be learnt from what lies there
            known = torch.where(weights > 0, target, color.detach())
            unlike = (1 - ssim_map(color, known)) * weights[MARGIN:-MARGIN, MARGIN:-MARGIN]
        return (1 - self.ssim_share) * loss + self.ssim_share * unlike.mean()
