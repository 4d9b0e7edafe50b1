"""How far a rendered view is from what it should be: absolute and squared error, and structural similarity.

The step that fitting and editing share (`optimizer.py`) calls a `PhotometricLoss`; `ssim_map` is of use alone too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError

__all__ = ["PhotometricLoss", "ssim_map"]

WINDOW = 11
"""Side of the Gaussian window in pixels, as in Wang et al. 2004 and in 3D Gaussian splatting."""
MARGIN = WINDOW // 2
"""The outermost pixels have no whole window, and so no similarity."""
SIGMA = 1.5
STABILISERS = (0.01**2, 0.03**2)
"""C1 and C2 for values in [0, 1]."""


def _taps() -> Tensor:
    weights = [math.exp(-((index - MARGIN) ** 2) / (2 * SIGMA**2)) for index in range(WINDOW)]
    return torch.tensor(weights) / sum(weights)


def _blur(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h-10 w-10"]:
    """Weighted mean over the window around each pixel that has a whole one; both directions one after the other."""
    count = len(maps)
    taps = _taps().to(maps).expand(count, 1, WINDOW)
    columns = torch.nn.functional.conv2d(maps[None], taps[:, :, :, None], groups=count)
    return torch.nn.functional.conv2d(columns, taps[:, :, None, :], groups=count)[0]


def ssim_map(image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"]) -> Float[Tensor, "c h-10 w-10"]:
    """Structural similarity at each pixel whose window lies in the image; 1 where both are the same.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity"
    (2004), equation 13, for values in [0, 1]; differentiable in both.

    Raises:
        InputError: the image is smaller than the window.
    """
    count, height, width = image.shape
    if min(height, width) < WINDOW:
        raise InputError(
            f"expected images of at least {WINDOW} x {WINDOW} pixels for structural similarity, got {width} x {height};"
            " choose a greater --size, or an ssim_share of 0"
        )
    mean, square, product = _blur(torch.cat([image, image * image, image * target])).split(count)
    mean_target, square_target = _blur(torch.cat([target, target * target])).split(count)
    c1, c2 = STABILISERS
    covariance = product - mean * mean_target
    variances = square - mean * mean + square_target - mean_target * mean_target
    luminance = (2 * mean * mean_target + c1) / (mean * mean + mean_target * mean_target + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


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
        unlike = 1 - ssim_map(color, target)
        if weights is not None:
            unlike = unlike * weights[MARGIN:-MARGIN, MARGIN:-MARGIN]
        return (1 - self.ssim_share) * loss + self.ssim_share * unlike.mean()
