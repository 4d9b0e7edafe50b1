"""Rasterizers: splats and one camera to color, alpha, depth and features, differentiable in the splats.

`rasterize` draws with the one that belongs to the device on which the splats lie; tests/scenes/dense_rasterizer.py is
the plain twin of all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.rasterize.blending import Rasterizer, Rendering
from restage.scenes.rasterize.gsplat_cuda import rasterize_gsplat
from restage.scenes.rasterize.numba_cpu import rasterize_numba
from restage.scenes.splats import Splats

__all__ = ["RASTERIZERS", "Rasterizer", "Rendering", "rasterize", "rasterize_gsplat", "rasterize_numba"]
__all__ += ["splat_weights"]

RASTERIZERS: dict[str, Rasterizer] = {"cpu": rasterize_numba, "cuda": rasterize_gsplat}
"""The rasterizer for each type of torch device."""


def rasterize(splats: Splats, cameras: Cameras, *, features: Float[Tensor, "n c"] | None = None) -> Rendering:
    """Draw splats as one camera sees them, on the device on which they lie; see `Rasterizer`."""
    device = splats.means.device
    if device.type not in RASTERIZERS:
        raise InputError(f"splats lie on {device}, where nothing draws them; move them to {' or '.join(RASTERIZERS)}")
    return RASTERIZERS[device.type](splats, cameras, features=features)


def splat_weights(
    splats: Splats, cameras: Cameras, maps: Float[Tensor, "c h w"]
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
    """Sum over the pixels of one view the blending weight (opacity x transmittance) of each splat times each map.

    The weight of a splat at a pixel is the derivative of a rendered feature with respect to the splat's feature, so
    this is one backward pass.

    Returns:
        The weighted sums of each map, and the sums of the weights alone; 0 for splats that the view does not show.
    """
    if tuple(maps.shape[1:]) != (cameras.height, cameras.width):
        raise InputError(f"expected maps of {cameras.height}x{cameras.width}, got {tuple(maps.shape[1:])}")
    channels = torch.cat([maps, maps.new_ones(1, *maps.shape[1:])])
    with torch.enable_grad():
        features = torch.zeros(len(splats), len(channels), device=maps.device, requires_grad=True)
        rendering = rasterize(splats.detach(), cameras, features=features)
        (sums,) = torch.autograd.grad(rendering.features, features, channels)
    return sums[:, :-1], sums[:, -1]
