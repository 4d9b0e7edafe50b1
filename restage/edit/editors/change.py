"""Where an edited view differs from its original by more than its editor's own noise: masks for editors without any."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

__all__ = ["change_masks", "noise_floor"]

Views = Float[Tensor, "n 3 h w"]
Masks = Float[Tensor, "n h w"]

EDGE_BINS = 8
"""Classes of pixels by how strong the original's edges are there: editors blur edges more than flat places."""
FLOOR_QUANTILE = 0.25
MAX_FLOOR = 0.03
"""An edit that leaves less than a quarter of the pixels alone would pass for noise; no editor's noise is larger."""
LOW, LOW_FACTOR = 0.03, 1.0
HIGH, HIGH_FACTOR = 0.1, 2.0
"""A change begins at `LOW + LOW_FACTOR * floor`, and is one where it somewhere reaches `HIGH + HIGH_FACTOR * floor`."""
MIN_PIXELS_SHARE = 0.0005
"""Smaller pieces, as shares of the view, are noise."""


def noise_floor(edited: Views, originals: Views) -> Masks:
    """How much the editor changes what it does not edit, for each pixel, in [0, `MAX_FLOOR`].

    It is read from the pixels that changed least among those with edges of the same strength, of all views together.
    """
    difference = (edited - originals).abs().mean(dim=1)
    gray = originals.mean(dim=1).numpy()
    edges = np.stack([ndimage.gaussian_gradient_magnitude(plane, 1.0) for plane in gray])
    limits = np.quantile(edges, np.linspace(0, 1, EDGE_BINS + 1)[1:-1])
    bins = torch.from_numpy(np.digitize(edges, limits))
    floors = torch.zeros(EDGE_BINS)
    for index in range(EDGE_BINS):
        inside = difference[bins == index]
        if len(inside):
            floors[index] = float(np.quantile(inside.numpy(), FLOOR_QUANTILE))
    return floors.clamp(max=MAX_FLOOR)[bins]


def change_masks(edited: Views, originals: Views) -> Masks:
    """Soft masks of what changed: a piece counts if it somewhere clearly changed, and then as far as it changed at all.

    The two thresholds (hysteresis, Canny 1986) lie above the editor's own noise.
    """
    floor = noise_floor(edited, originals)
    low, high = LOW + LOW_FACTOR * floor, HIGH + HIGH_FACTOR * floor
    masks = []
    for view, difference in enumerate((edited - originals).abs().mean(dim=1)):
        smooth = torch.from_numpy(ndimage.gaussian_filter(difference.numpy(), 0.7))
        found: Any = ndimage.label((smooth > low[view]).numpy(), structure=np.ones((3, 3)))
        pieces, count = found
        strength = ((smooth - low[view]) / (high[view] - low[view])).clamp(0, 1)
        if count:
            numbers = range(1, count + 1)
            peaks = ndimage.maximum(strength.numpy(), pieces, numbers)
            sizes = ndimage.sum_labels(np.ones_like(pieces), pieces, numbers)
            is_kept = (np.array(peaks) >= 1) & (sizes >= MIN_PIXELS_SHARE * pieces.size)
            strength = strength * torch.from_numpy(np.concatenate([[False], is_kept])[pieces])
        else:
            strength = torch.zeros_like(strength)
        masks.append(strength)
    return torch.stack(masks).float()
