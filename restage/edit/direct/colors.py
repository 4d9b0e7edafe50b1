"""Affine changes of the colors of splats, for every direction that they are seen from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import ImageColor
from torch import Tensor

from restage.records import InputError
from restage.scenes.splats import SH_C0, Splats

__all__ = ["ColorMap", "brightened", "change_colors", "hue_shifted", "mean_color", "read_color", "saturated", "tinted"]
__all__ += ["towards"]

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (Rec. 709)."""
MAX_MEAN = 0.75
"""Brightest channel of the mean of what gets another color: above, what is lit would be cut off at 1 and look flat."""
MIN_CONTRAST, MAX_CONTRAST = 0.25, 2.5
"""Limits of how much shading is flattened or stretched on the way to a darker or lighter color: without the first, all
that becomes black would be flat, without the second, the noise of a dark thing that becomes white would show."""


class ColorMap(NamedTuple):
    """The color c becomes `matrix` c + `shift`, with colors in [0, 1]."""

    matrix: Float[Tensor, "3 3"]
    shift: Float[Tensor, " 3"]

    def then(self, other: ColorMap) -> ColorMap:
        """Returns this map followed by another one."""
        return ColorMap(other.matrix @ self.matrix, other.matrix @ self.shift + other.shift)

    def faded(self, amount: float) -> ColorMap:
        """Returns the map that goes this share of the way, from 0 (nothing) to 1 (the whole)."""
        return ColorMap(torch.lerp(torch.eye(3), self.matrix, amount), amount * self.shift)


def read_color(text: str) -> tuple[float, float, float]:
    """Read a color by its name in CSS, such as `gold`, or as `#rrggbb`; red, green and blue in [0, 1]."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise InputError(f"expected a color such as gold or #ffd700, got {text!r}") from None
    return red / 255, green / 255, blue / 255


def hue_shifted(degrees: float) -> ColorMap:
    """Turn colors about the axis of greys: by 120 degrees red becomes green, green blue, and blue red."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis = torch.full((3,), 3**-0.5)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return ColorMap(cosine * torch.eye(3) + sine * cross + (1 - cosine) * torch.outer(axis, axis), torch.zeros(3))


def saturated(share: float) -> ColorMap:
    """Move colors away from their grey of equal luminance: 0 makes them grey, 1 leaves them, 2 doubles saturation."""
    grey = torch.tensor(LUMINANCE).expand(3, 3)
    return ColorMap(torch.lerp(grey, torch.eye(3), share), torch.zeros(3))


def brightened(factor: float) -> ColorMap:
    """Multiply colors by a factor."""
    return ColorMap(factor * torch.eye(3), torch.zeros(3))


def tinted(color: tuple[float, float, float]) -> ColorMap:
    """Multiply colors by a color, as a colored glass does."""
    return ColorMap(torch.diag(torch.tensor(color)), torch.zeros(3))


def towards(color: tuple[float, float, float], mean: Float[Tensor, " 3"]) -> ColorMap:
    """Give what has a mean color another one; of the old colors the shading alone remains, no hue.

    Colors brighter than `MAX_MEAN` become that bright on average, so that what is lit reaches the color itself.
    """
    luminance = torch.tensor(LUMINANCE)
    goal = torch.tensor(color) * min(1.0, MAX_MEAN / max(*color, 1e-3))
    goal_luminance, mean_luminance = float(goal @ luminance), float(mean.cpu() @ luminance)
    hue = goal / goal_luminance if goal_luminance > 1e-3 else torch.ones(3)
    # A factor of the two luminances scales shading with the color; the mean becomes the goal with any factor.
    contrast = min(max(goal_luminance / max(mean_luminance, 1e-3), MIN_CONTRAST), MAX_CONTRAST)
    return ColorMap(torch.outer(contrast * hue, luminance), goal - contrast * mean_luminance * hue)


def mean_color(splats: Splats, weights: Float[Tensor, " n"]) -> Float[Tensor, " 3"]:
    """Mean color of a region, without its change with the direction; large opaque splats count most."""
    area = splats.log_scales.mean(dim=1).mul(2).exp()
    counts = weights * splats.opacity_logits.sigmoid() * area
    colors = 0.5 + SH_C0 * splats.sh[:, 0]
    return (counts[:, None] * colors.clamp(0, 1)).sum(dim=0) / counts.sum().clamp_min(1e-12)


def change_colors(splats: Splats, weights: Float[Tensor, " n"], change: ColorMap) -> Splats:
    """Change colors, each splat by the share that its weight says; where that is 0 they stay bit for bit.

    An affine map of colors is one of the harmonics: band 0 takes its shift, all bands its matrix, so that from any
    direction a splat shows the changed color of what it showed.
    """
    matrix, shift = (tensor.to(splats.sh) for tensor in change)
    mapped = splats.sh @ matrix.T
    mapped[:, 0] += (0.5 * matrix.sum(dim=1) + shift - 0.5) / SH_C0
    changed = splats.clone()
    changed.sh = torch.lerp(splats.sh, mapped, weights[:, None, None].to(splats.sh))
    return changed
