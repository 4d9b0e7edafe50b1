"""Masks between views and splats: lifted, how much of what a splat shows lies inside; rendered, the way back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import rasterize_numba, splat_weights
from restage.scenes.splats import Splats

__all__ = ["lift_masks", "render_masks"]

MIN_TOTAL_WEIGHT = 1e-3
"""A splat with less blending weight than this, summed over all pixels of all views, counts as unseen."""


def lift_masks(splats: Splats, cameras: Cameras, masks: Float[Tensor, "n h w"]) -> Float[Tensor, " num_splats"]:
    """Mask value of each splat: mean of the masks over all pixels, weighted by the splat's blending weight there.

    The weight is opacity x transmittance, so splats behind the masked surface stay out (counting pixels unweighted
    brings them along). A splat that no view sees gets 0.

    Returns:
        In [0, 1].
    """
    inside = torch.zeros(len(splats))
    total = torch.zeros(len(splats))
    for index, mask in enumerate(masks):
        weighted, seen = splat_weights(splats, cameras[index], mask[None])
        inside += weighted[:, 0]
        total += seen
    return torch.where(total > MIN_TOTAL_WEIGHT, inside / total.clamp_min(MIN_TOTAL_WEIGHT), 0.0).clamp(0, 1)


@torch.no_grad()
def render_masks(splats: Splats, cameras: Cameras, values: Float[Tensor, " num_splats"]) -> Float[Tensor, "n h w"]:
    """How much of what each pixel shows comes from splats of value 1: their values, blended like colors.

    Returns:
        In [0, 1]; 0 where a view shows no splat.
    """
    views = [rasterize_numba(splats.detach(), cameras[i], features=values[:, None]) for i in range(len(cameras))]
    return torch.stack([view.features[0] for view in views]).clamp(0, 1)
