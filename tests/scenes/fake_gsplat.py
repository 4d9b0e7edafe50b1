"""gsplat 1.5.3's `rasterization`, drawn densely: the same arguments, conventions and limits, and any device.

Only what Restage asks of it is there; anything else, or in another form than gsplat takes it, is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import RASTERIZERS, rasterize_gsplat
from restage.scenes.splats import Splats
from tests.other_device import OTHER, other_device
from tests.scenes.dense_rasterizer import blend, coverage, project

MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803
    width: int,
    height: int,
    near_plane: float = 0.01,
    eps2d: float = 0.3,
    packed: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Colors "1 h w c" over 0, alphas "1 h w 1" and nothing else."""
    n = len(means)
    shapes = [tuple(tensor.shape) for tensor in (means, quats, scales, opacities, viewmats, Ks)]
    assert shapes == [(n, 3), (n, 4), (n, 3), (n,), (1, 4, 4), (1, 3, 3)], shapes
    # With up to 32 channels gsplat draws once.
    assert colors.shape[:-1] == (n,) and 1 <= colors.shape[-1] <= 32 and colors.ndim == 2, colors.shape
    tensors = (means, quats, scales, opacities, colors, viewmats, Ks)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}, "the kernels know float32 alone"
    assert {tensor.device for tensor in tensors} == {means.device}, "the kernels read one device"
    assert not packed and eps2d == 0.3 and isinstance(width, int) and isinstance(height, int)
    assert bool((scales > 0).all()), "scales are standard deviations, not their logarithms"
    assert bool(((opacities >= 0) & (opacities <= 1)).all()), "opacities are not logits"
    assert torch.equal(viewmats[0, 3].cpu(), torch.tensor([0.0, 0.0, 0.0, 1.0])), "column vectors, world to camera"
    assert float(Ks[0, 0, 1]) == 0, "gsplat reads no skew"
    in_camera = means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    is_drawn = (in_camera[:, 2] > near_plane) & (opacities >= MIN_ALPHA)
    order = is_drawn.nonzero()[:, 0]
    order = order[torch.argsort(in_camera.detach()[order, 2], stable=True)]
    splats = Splats(means, scales.log(), quats, opacities.logit(), colors[:, None, :1].expand(-1, -1, 3))
    axes = viewmats.clone()  # of the camera to world, which is all that projecting centers in camera axes needs
    axes[:, :3, :3] = viewmats[:, :3, :3].transpose(1, 2)
    cameras = Cameras(axes, Ks, width, height)
    centers, covariances = project(splats, cameras, in_camera[order], order)
    weights, alpha = blend(coverage(centers, covariances, opacities[order], cameras, max_alpha=MAX_ALPHA))
    return torch.einsum("nhw,nc->hwc", weights, colors[order])[None], alpha[None, :, :, None], {}


@contextmanager
def gsplat_elsewhere() -> Iterator[str]:
    """Within it, splats on another device are drawn by `rasterize_gsplat`, and that draws by `rasterization` above.

    Yields the name of that device.
    """
    module = ModuleType("gsplat")
    module.rasterization = rasterization  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch, other_device() as name:
        patch.setitem(sys.modules, "gsplat", module)
        patch.setitem(RASTERIZERS, OTHER, rasterize_gsplat)
        yield name
