"""The rasterizer for NVIDIA GPUs: gsplat's CUDA kernels behind the interface of the others.

Needs `restage[cuda]` and a CUDA device; splats and features lie on it. gsplat caps alpha at 0.999 where the others cap
it at 0.99, so that behind very opaque splats colors differ by up to 0.01; all else is the same (docs/scenes.md).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, MissingExtra
from restage.scenes.cameras import Cameras
from restage.scenes.rasterize.blending import NEAR, Rendering, assemble, check_inputs, is_in_view
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
    if device.type == "cpu":
        raise InputError(f"gsplat draws splats on a CUDA device, got splats on {device}; move them, or use `rasterize`")
    try:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("gsplat", "cuda") from error
    if skew_px := float(cameras.intrinsics[0, 0, 1]):
        raise InputError(f"gsplat draws cameras without skew, got {skew_px} px; choose --device cpu")
    world_to_camera = cameras.world_to_camera.to(device)
    means = splats.means.float()
    in_camera = means @ world_to_camera[0, :3, :3].T + world_to_camera[0, :3, 3]
    directions = None
    if splats.degree:
        directions = torch.nn.functional.normalize(means - cameras.positions[0].to(device), dim=1)
    values = [evaluate_sh(splats.sh, directions), in_camera[:, 2:], *([] if features is None else [features])]
    blended, alpha, _ = rasterization(
        means=means,
        quats=splats.rotations,
        scales=splats.log_scales.exp(),
        # gsplat draws whatever reaches into the picture; of what lies far beside it that is an artifact of projecting.
        opacities=torch.where(is_in_view(in_camera, cameras), torch.sigmoid(splats.opacity_logits), 0.0),
        colors=torch.cat(values, dim=1),
        viewmats=world_to_camera,
        Ks=cameras.intrinsics.to(device),
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        eps2d=DILATION,
        packed=False,
    )
    return assemble(blended[0].permute(2, 0, 1), alpha[0, :, :, 0])
