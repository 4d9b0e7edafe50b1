"""The rasterizer that runs everywhere: projection in PyTorch, blending in numba kernels, gradients through both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import kernels
from restage.scenes.rasterize.blending import (
    CLAMP_MARGIN,
    DILATION,
    MIN_ALPHA,
    Rendering,
    assemble,
    check_inputs,
    is_in_view,
    slope_range,
)
from restage.scenes.splats import Splats, evaluate_sh

__all__ = ["rasterize_numba"]


def rasterize_numba(
    splats: Splats,
    cameras: Cameras,
    *,
    background: Float[Tensor, " 3"] | None = None,
    features: Float[Tensor, "n c"] | None = None,
) -> Rendering:
    """Draw splats as one camera sees them; see `Rasterizer`.

    Deterministic, also in its gradients, whatever the number of threads; float32 whatever comes in.
    """
    check_inputs(splats, cameras, features)
    footprints = _project(splats, cameras)
    directions = splats.means[:, :0]
    if splats.degree:
        directions = torch.nn.functional.normalize(splats.means - cameras.positions[0], dim=1)
    values = [evaluate_sh(splats.sh, directions), footprints.depths[:, None]]
    if features is not None:
        values.append(features)
    blended, alpha = _Blend.apply(
        footprints.geometry, torch.cat(values, dim=1), footprints, cameras.width, cameras.height
    )
    return assemble(blended, alpha, background)


class _Footprints(NamedTuple):
    """Splats on the image."""

    geometry: Float[Tensor, "n 6"]
    """x, y in pixels, conic xx, xy, yy in 1 / square pixels, opacity."""
    depths: Float[Tensor, " n"]
    order: np.ndarray
    """Indices of the drawn splats, near to far."""
    extents: np.ndarray
    """Half width and half height in pixels of where alpha reaches the least that is drawn, "n 2"."""


def _project(splats: Splats, cameras: Cameras) -> _Footprints:
    """Project all splats; component by component, since many small matrix products are slow on a CPU."""
    intrinsics = cameras.intrinsics[0].tolist()
    world_to_camera = cameras.world_to_camera[0]
    in_camera = splats.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    visible = is_in_view(in_camera, cameras)
    x, y, z = in_camera.unbind(1)
    z = torch.where(visible, z, 1.0)
    inverse_z = 1.0 / z
    slope_x, slope_y = torch.where(visible, x, 0.0) * inverse_z, torch.where(visible, y, 0.0) * inverse_z
    (focal_x, skew, center_x), (_, focal_y, center_y), _ = intrinsics
    pixel_x = focal_x * slope_x + skew * slope_y + center_x
    pixel_y = focal_y * slope_y + center_y

    variance_x, variance_xy, variance_y = _image_covariances(splats, cameras, inverse_z, slope_x, slope_y)
    inverse_determinant = 1.0 / (variance_x * variance_y - variance_xy * variance_xy)
    opacities = torch.sigmoid(splats.opacity_logits)
    geometry = torch.stack(
        [
            pixel_x,
            pixel_y,
            variance_y * inverse_determinant,
            -variance_xy * inverse_determinant,
            variance_x * inverse_determinant,
            opacities,
        ],
        dim=1,
    )
    with torch.no_grad():
        reach = 2.0 * torch.log(opacities.clamp_min(MIN_ALPHA) / MIN_ALPHA)
        extents = torch.sqrt(torch.stack([variance_x, variance_y], dim=1) * reach[:, None])
        extents = torch.nan_to_num(extents * 1.0001 + 1e-3, nan=0.0, posinf=1e6)
        indices = (visible & (opacities >= MIN_ALPHA)).nonzero()[:, 0]
        order = indices[torch.argsort(z[indices], stable=True)]
    return _Footprints(geometry, z, order.numpy(), extents.float().numpy())


def _image_covariances(
    splats: Splats, cameras: Cameras, inverse_z: Tensor, slope_x: Tensor, slope_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """xx, xy and yy of J R S S^T R^T J^T + dilation, in square pixels."""
    left, right, top, bottom = slope_range(cameras, CLAMP_MARGIN)
    (focal_x, skew, _), (_, focal_y, _), _ = cameras.intrinsics[0].tolist()
    slope_x, slope_y = slope_x.clamp(left, right), slope_y.clamp(top, bottom)
    rotation = cameras.world_to_camera[0, :3, :3]
    # Rows of the Jacobian times the camera's rotation, "n 3" each: gradients of the pixel over world axes.
    row_x = (rotation[0] - slope_x[:, None] * rotation[2]) * inverse_z[:, None]
    row_y = (rotation[1] - slope_y[:, None] * rotation[2]) * inverse_z[:, None]
    row_x, row_y = focal_x * row_x + skew * row_y, focal_y * row_y
    scales = splats.log_scales.exp()
    spread_x = _to_splat_axes(splats.rotations, row_x) * scales
    spread_y = _to_splat_axes(splats.rotations, row_y) * scales
    return (
        (spread_x * spread_x).sum(1) + DILATION,
        (spread_x * spread_y).sum(1),
        (spread_y * spread_y).sum(1) + DILATION,
    )


def _to_splat_axes(rotations: Float[Tensor, "n 4"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Turn world vectors into each splat's axes: v - 2 w u x v + 2 u x (u x v) for the unit quaternion (w, u)."""
    unit = torch.nn.functional.normalize(rotations, dim=1)
    real, imaginary = unit[:, :1], unit[:, 1:]
    turned = 2.0 * torch.linalg.cross(imaginary, vectors)
    return vectors - real * turned + torch.linalg.cross(imaginary, turned)


class _Blend(torch.autograd.Function):
    """(geometry, values) -> (channels, alpha) by the numba kernels."""

    @staticmethod
    def forward(
        ctx: Any, geometry: Tensor, values: Tensor, footprints: _Footprints, width: int, height: int
    ) -> tuple[Tensor, Tensor]:
        geometry_array = np.ascontiguousarray(geometry.detach().float().numpy())
        values_array = np.ascontiguousarray(values.detach().float().numpy())
        half_heights = np.ascontiguousarray(footprints.extents[:, 1])
        bins = kernels.bin_splats(footprints.order, geometry_array[:, :2], footprints.extents, width, height)
        tile_starts, entry_splats, splat_starts, splat_entries = bins
        blended, left, counts = kernels.blend_forward(
            tile_starts,
            entry_splats,
            geometry_array,
            values_array,
            half_heights,
            width,
            height,
            numba.get_num_threads(),
        )
        ctx.forward_inputs = (tile_starts, entry_splats, geometry_array, values_array, half_heights, left, counts)
        ctx.splat_entries = (splat_starts, splat_entries)
        return torch.from_numpy(blended), torch.from_numpy(1.0 - left)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_blended, by_alpha = (np.ascontiguousarray(gradient.float().numpy()) for gradient in gradients)
        rows = kernels.blend_backward(*ctx.forward_inputs, by_blended, -by_alpha, numba.get_num_threads())
        sums = torch.from_numpy(kernels.sum_entries(*ctx.splat_entries, rows))
        return sums[:, : kernels.NUM_GEOMETRY], sums[:, kernels.NUM_GEOMETRY :], None, None, None
