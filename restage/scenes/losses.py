"""How far a rendered view is from what it should be: absolute and squared error, and structural similarity.

The step that fitting and editing share (`optimizer.py`) calls `photometric_loss` through its config.
"""

# pyright: reportCallIssue=false
# (numba's decorators hide the signatures of compiled functions)
from __future__ import annotations

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.records import InputError

__all__ = ["MARGIN", "WINDOW", "photometric_loss", "ssim_map"]

WINDOW = 11
"""Side of the Gaussian window in pixels, as in Wang et al. 2004 and in 3D Gaussian splatting."""
MARGIN = WINDOW // 2
"""The outermost pixels have no whole window, and so no similarity."""
SIGMA = 1.5
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)
"""The stabilisers, for values in [0, 1]."""
TWO = np.float32(2.0)

_weights = [math.exp(-((index - MARGIN) ** 2) / (2 * SIGMA**2)) for index in range(WINDOW)]
TAPS = tuple(np.float32(weight / sum(_weights)) for weight in _weights)
FLAGS = {"contract", "nsz", "arcp"}


@numba.njit(cache=True, parallel=True, fastmath=FLAGS)
@no_type_check
def _compare(image, target):
    """Similarity of the pixels with a whole window, and its derivatives by the window's mean, mean square, product."""
    count, height, width = image.shape
    found = np.empty((4, count, height - WINDOW + 1, width - WINDOW + 1), image.dtype)
    for plane in numba.prange(count):
        first, second = image[plane], target[plane]
        rows = np.empty((5, width), image.dtype)
        means = np.empty((5, width - WINDOW + 1), image.dtype)
        for row in range(height - WINDOW + 1):
            # The window is separable: first down the columns of eleven rows, then along the one row that is left.
            rows[:] = 0
            for tap in range(WINDOW):
                weight = TAPS[tap]
                for column in range(width):
                    x, y = first[row + tap, column], second[row + tap, column]
                    rows[0, column] += weight * x
                    rows[1, column] += weight * y
                    rows[2, column] += weight * x * x
                    rows[3, column] += weight * y * y
                    rows[4, column] += weight * x * y
            means[:] = 0
            for tap in range(WINDOW):
                weight = TAPS[tap]
                for kind in range(5):
                    for column in range(width - WINDOW + 1):
                        means[kind, column] += weight * rows[kind, column + tap]
            for column in range(width - WINDOW + 1):
                x, y = means[0, column], means[1, column]
                luminance, structure = TWO * x * y + C1, TWO * (means[4, column] - x * y) + C2
                power = x * x + y * y + C1
                spread = (means[2, column] - x * x) + (means[3, column] - y * y) + C2
                similarity = luminance * structure / (power * spread)
                found[0, plane, row, column] = similarity
                # Derivatives are cheap here, where all parts are at hand, and let the way back be three convolutions.
                found[1, plane, row, column] = TWO * y * (structure - luminance) / (power * spread) - (
                    TWO * x * similarity * (1 / power - 1 / spread)
                )
                found[2, plane, row, column] = -similarity / spread
                found[3, plane, row, column] = TWO * luminance / (power * spread)
    return found


@numba.njit(cache=True, parallel=True, fastmath=FLAGS)
@no_type_check
def _spread_back(image, target, found, by_similarity):
    """Gradient by the image: the transposed windows of the three derivatives."""
    count, height, width = image.shape
    gradient = np.empty_like(image)
    for plane in numba.prange(count):
        # Zeros around, since a pixel near the border lies in fewer windows.
        padded = np.zeros((3, height + WINDOW - 1, width + WINDOW - 1), image.dtype)
        for kind in range(3):
            for row in range(height - WINDOW + 1):
                for column in range(width - WINDOW + 1):
                    padded[kind, row + WINDOW - 1, column + WINDOW - 1] = (
                        found[kind + 1, plane, row, column] * by_similarity[plane, row, column]
                    )
        rows = np.empty((3, width + WINDOW - 1), image.dtype)
        sums = np.empty((3, width), image.dtype)
        for row in range(height):
            rows[:] = 0
            sums[:] = 0
            for kind in range(3):
                for tap in range(WINDOW):
                    weight = TAPS[tap]
                    for column in range(width + WINDOW - 1):
                        rows[kind, column] += weight * padded[kind, row + tap, column]
                for tap in range(WINDOW):
                    weight = TAPS[tap]
                    for column in range(width):
                        sums[kind, column] += weight * rows[kind, column + tap]
            for column in range(width):
                gradient[plane, row, column] = (
                    sums[0, column]
                    + TWO * image[plane, row, column] * sums[1, column]
                    + target[plane, row, column] * sums[2, column]
                )
    return gradient


class _Similarity(torch.autograd.Function):
    """By compiled loops, on the CPU."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor) -> Tensor:
        arrays = [tensor.detach().contiguous().numpy() for tensor in (image, target)]
        found = _compare(*arrays)
        ctx.inputs = (*arrays, found)
        return torch.from_numpy(found[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.from_numpy(_spread_back(*ctx.inputs, gradients[0].contiguous().numpy())), None


def ssim_map(image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"]) -> Float[Tensor, "c h-10 w-10"]:
    """Structural similarity at each pixel whose window lies in the image; 1 where both are the same.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity"
    (2004), equation 13, for values in [0, 1]; differentiable in the image, not in the target. The window must fit in.
    """
    _, height, width = image.shape
    if min(height, width) < WINDOW:
        raise InputError(
            f"expected images of at least {WINDOW} x {WINDOW} pixels for structural similarity, got {width} x {height};"
            " choose a greater --size, or an ssim_share of 0"
        )
    return _Similarity.apply(image, target) if image.device.type == "cpu" else _similarity(image, target.detach())


def _similarity(image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"]) -> Float[Tensor, "c h-10 w-10"]:
    """The same by PyTorch's convolutions, for any device."""
    # GPUs may round the factors of float32 convolutions to ten bits, and variances are small differences of squares.
    first, second = image.double(), target.double()
    planes = torch.stack([first, second, first.square(), second.square(), first * second])
    taps = planes.new_tensor([float(tap) for tap in TAPS])
    rows = functional.conv2d(planes.flatten(0, 1)[:, None], taps.view(1, 1, -1, 1))
    x, y, xx, yy, xy = functional.conv2d(rows, taps.view(1, 1, 1, -1)).unflatten(0, (5, -1))[:, :, 0]
    c1, c2 = float(C1), float(C2)
    similarity = (2 * x * y + c1) * (2 * (xy - x * y) + c2)
    similarity = similarity / ((x.square() + y.square() + c1) * (xx - x.square() + yy - y.square() + c2))
    return similarity.to(image.dtype)


def photometric_loss(
    color: Float[Tensor, "3 h w"],
    target: Float[Tensor, "3 h w"],
    weights: Float[Tensor, "h w"] | None = None,
    *,
    l2_share: float,
    ssim_share: float,
) -> Float[Tensor, ""]:
    """Return the mean loss of pixels as `PhotometricLoss` describes it, each times its weight (>= 0, default 1)."""
    difference = color - target
    error = (1 - l2_share) * difference.abs() + 10 * l2_share * difference.square()
    loss = error.mean() if weights is None else (error * weights).mean()
    if not ssim_share:
        return loss
    if weights is None:
        unlike = 1 - ssim_map(color, target)
    else:  # windows reach beyond the pixels that count: nothing is to be learnt from what lies there
        known = torch.where(weights > 0, target, color.detach())
        unlike = (1 - ssim_map(color, known)) * weights[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return (1 - ssim_share) * loss + ssim_share * unlike.mean()
