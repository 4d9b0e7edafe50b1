"""The dense rasterizer: every splat at every pixel in plain PyTorch, written for reading and for testing others.

Memory grows with splats x pixels; meant for some hundred splats on small images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import blending, kernels
from restage.scenes.rasterize.projection import DILATION
from restage.scenes.splats import Splats, evaluate_sh, rotation_matrices


def rasterize_dense(
    splats: Splats,
    cameras: Cameras,
    *,
    features: Float[Tensor, "n c"] | None = None,
) -> blending.Rendering:
    """Draw splats as one camera sees them; see `Rasterizer`.

    EWA splatting (Zwicker et al. 2001) with the constants of 3D Gaussian splatting (Kerbl et al. 2023).
    """
    blending.check_inputs(splats, cameras, features)
    world_to_camera = cameras.world_to_camera[0].to(splats.means.dtype)
    in_camera = splats.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    visible = blending.is_in_view(in_camera, cameras).nonzero()[:, 0]
    order = visible[torch.argsort(in_camera.detach()[visible, 2], stable=True)]
    in_camera = in_camera[order]

    centers, covariances = project(splats, cameras, in_camera, order)
    alphas = coverage(centers, covariances, torch.sigmoid(splats.opacity_logits[order]), cameras)
    weights, alpha = blend(alphas)

    directions = torch.nn.functional.normalize(splats.means[order] - cameras.positions[0].to(in_camera), dim=1)
    values = [evaluate_sh(splats.sh[order], directions), in_camera[:, 2:]]
    if features is not None:
        values.append(features[order])
    blended = torch.einsum("nhw,nc->chw", weights, torch.cat(values, dim=1))
    return blending.assemble(blended, alpha)


def project(
    splats: Splats, cameras: Cameras, in_camera: Float[Tensor, "v 3"], order: Tensor
) -> tuple[Float[Tensor, "v 2"], Float[Tensor, "v 2 2"]]:
    """Centers in pixels and covariances J R S S^T R^T J^T + dilation, in square pixels."""
    intrinsics = cameras.intrinsics[0].to(in_camera)
    x, y, z = in_camera.unbind(1)
    slopes = torch.stack([x / z, y / z], dim=1)
    centers = slopes @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    left, right, top, bottom = blending.slope_range(cameras, blending.CLAMP_MARGIN)
    slope_x, slope_y = slopes[:, 0].clamp(left, right), slopes[:, 1].clamp(top, bottom)
    zeros = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([1 / z, zeros, -slope_x / z], dim=1), torch.stack([zeros, 1 / z, -slope_y / z], dim=1)], dim=1
    )
    jacobian = intrinsics[:2, :2] @ jacobian
    axes = rotation_matrices(splats.rotations[order]) * splats.log_scales[order].exp()[:, None, :]
    spread = jacobian @ cameras.world_to_camera[0, :3, :3].to(in_camera) @ axes
    covariances = spread @ spread.transpose(1, 2) + DILATION * torch.eye(2).to(in_camera)
    return centers, covariances


def coverage(
    centers: Float[Tensor, "v 2"],
    covariances: Float[Tensor, "v 2 2"],
    opacities: Float[Tensor, " v"],
    cameras: Cameras,
    *,
    max_alpha: float = kernels.MAX_ALPHA,
) -> Float[Tensor, "v h w"]:
    """Opacity of each splat at each pixel, 0 where it is below the least that is drawn."""
    rows = torch.arange(cameras.height).to(centers) + 0.5
    columns = torch.arange(cameras.width).to(centers) + 0.5
    offset_x = columns[None, None, :] - centers[:, 0, None, None]
    offset_y = rows[None, :, None] - centers[:, 1, None, None]
    conics = torch.linalg.inv(covariances)[..., None, None]
    power = -0.5 * (conics[:, 0, 0] * offset_x**2 + conics[:, 1, 1] * offset_y**2)
    power = power - conics[:, 0, 1] * offset_x * offset_y
    alphas = (opacities[:, None, None] * power.exp()).clamp_max(max_alpha)
    return torch.where(alphas.detach() >= kernels.MIN_ALPHA, alphas, 0.0)


def blend(alphas: Float[Tensor, "v h w"]) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "h w"]]:
    """Front-to-back weights, and the covered share; a pixel stops before it would become opaque."""
    with torch.no_grad():
        is_drawn = torch.cumprod(1 - alphas, dim=0) >= kernels.MIN_TRANSMITTANCE
    alphas = torch.where(is_drawn, alphas, 0.0)
    after = torch.cumprod(1 - alphas, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weights = alphas * before
    return weights, weights.sum(dim=0)
