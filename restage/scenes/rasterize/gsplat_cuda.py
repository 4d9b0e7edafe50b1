"""The rasterizer for NVIDIA GPUs: gsplat's CUDA kernels behind the interface of the others.

Needs `restage[cuda]` and a CUDA device; splats and features lie on it. gsplat caps alpha at 0.999 where the others cap
it at 0.99, so that very opaque splats differ slightly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, MissingExtra
from restage.scenes.cameras import Cameras
from restage.scenes.rasterize.blending import NEAR, Rendering, assemble, check_inputs
from restage.scenes.rasterize.projection import DILATION
from restage.scenes.splats import Splats, evaluate_sh

__all__ = ["rasterize_gsplat"]


def rasterize_gsplat(splats: Splats, cameras: Cameras, *, features: Float[Tensor, "n c"] | None = None) -> Rendering:
    """Draw splats as one camera sees them; see `Rasterizer`. Differentiable in the camera's pose, too.

    gsplat (Ye et al. 2024, arXiv 2409.06765), for splats on a CUDA device and cameras without skew. Its gradients are
    summed atomically: not the same bits every time.
    """
    check_inputs(splats, cameras, features)
    device = splats.means.device
    if device.type != "cuda":
        raise InputError(f"gsplat draws splats on a CUDA device, got splats on {device}; move them, or use `rasterize`")
    try:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("gsplat", "cuda") from error
    intrinsics = cameras.intrinsics.to(device)
    if bool(intrinsics[0, 0, 1] != 0):
        raise InputError(f"gsplat draws cameras without skew, got {float(intrinsics[0, 0, 1])} px")
    world_to_camera = cameras.world_to_camera.to(device)
    directions = None
    if splats.degree:
        directions = torch.nn.functional.normalize(splats.means - cameras.positions[0].to(device), dim=1)
    depths = splats.means @ world_to_camera[0, 2, :3] + world_to_camera[0, 2, 3]
    values = [evaluate_sh(splats.sh, directions), depths[:, None], *([] if features is None else [features])]
    blended, alpha, _ = rasterization(
        means=splats.means,
        quats=splats.rotations,
        scales=splats.log_scales.exp(),
        opacities=torch.sigmoid(splats.opacity_logits),
        colors=torch.cat(values, dim=1),
        viewmats=world_to_camera,
        Ks=intrinsics,
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        eps2d=DILATION,
        packed=False,
    )
    return assemble(blended[0].permute(2, 0, 1), alpha[0, :, :, 0])
