"""The rasterizer that runs everywhere: numba kernels for projection and blending, with gradients through both."""

# pyright: reportCallIssue=false
# (numba's decorators hide the signatures of compiled functions)
from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.run.threads import follow_load
from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import blending, kernels
from restage.scenes.rasterize.binning import bin_splats, order_by_depth
from restage.scenes.rasterize.projection import project_backward, project_forward
from restage.scenes.splats import Splats, evaluate_sh

__all__ = ["rasterize_numba"]


def rasterize_numba(
    splats: Splats, cameras: Cameras, *, features: Float[Tensor, "n c"] | None = None
) -> blending.Rendering:
    """Draw splats as one camera sees them; see `Rasterizer`.

    Differentiable in the camera's pose, too. Deterministic, also in its gradients, whatever the number of threads;
    float32 whatever comes in.
    """
    blending.check_inputs(splats, cameras, features)
    follow_load()
    world_to_camera = cameras.world_to_camera[0]
    in_camera = splats.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    opacities = torch.sigmoid(splats.opacity_logits)
    view = _view_of(cameras, in_camera, opacities)
    axes = world_to_camera[:3, :3]
    geometry = _Project.apply(in_camera, splats.log_scales, splats.rotations, opacities, axes, view)

    directions = None
    if splats.degree:
        directions = torch.nn.functional.normalize(splats.means - cameras.positions[0], dim=1)
    values = [evaluate_sh(splats.sh, directions), in_camera[:, 2:], *([] if features is None else [features])]
    blended, alpha = _Blend.apply(geometry, torch.cat(values, dim=1), view)
    return blending.assemble(blended, alpha)


class _View(NamedTuple):
    """One camera as the kernels take it, and which splats it draws in which order."""

    width: int
    height: int
    world_to_camera: np.ndarray
    lens: np.ndarray  # focal length x, skew, center x, focal length y, center y in pixels
    clamps: np.ndarray  # least and greatest x/z and y/z in the Jacobian
    is_seen: np.ndarray
    order: np.ndarray


def _view_of(cameras: Cameras, in_camera: Float[Tensor, "n 3"], opacities: Float[Tensor, " n"]) -> _View:
    is_seen = blending.is_in_view(in_camera, cameras) & (opacities.detach() >= kernels.MIN_ALPHA)
    seen = is_seen.numpy()
    return _View(
        width=cameras.width,
        height=cameras.height,
        world_to_camera=_array(cameras.world_to_camera[0]),
        lens=_array(cameras.intrinsics[0].flatten()[[0, 1, 2, 4, 5]]),
        clamps=np.array(blending.slope_range(cameras, blending.CLAMP_MARGIN), dtype=np.float32),
        is_seen=seen,
        order=order_by_depth(np.ascontiguousarray(_array(in_camera)[:, 2]), seen),
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


class _Project(torch.autograd.Function):
    """(centers in camera axes, log scales, rotations, opacities, camera's axes "3 3") -> geometry "n 6"."""

    @staticmethod
    def forward(
        ctx: Any, in_camera: Tensor, log_scales: Tensor, rotations: Tensor, opacities: Tensor, axes: Tensor, view: _View
    ) -> Tensor:
        arrays = (_array(in_camera), _array(log_scales), _array(rotations))
        camera = (view.is_seen, view.world_to_camera, view.lens, view.clamps)
        geometry = project_forward(*arrays, _array(opacities), *camera)
        ctx.inputs = (*arrays, geometry, *camera)
        return torch.from_numpy(geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        has_axes = ctx.needs_input_grad[4]
        found = project_backward(*ctx.inputs, _array(gradients[0]), has_axes)
        *by_parameters, by_axes = (torch.from_numpy(array) for array in found)
        return *by_parameters, gradients[0][:, 5], by_axes.sum(0) if has_axes else None, None


class _Blend(torch.autograd.Function):
    """(geometry "n 6", values "n c") -> (channels "c h w", alpha "h w")."""

    @staticmethod
    def forward(ctx: Any, geometry: Tensor, values: Tensor, view: _View) -> tuple[Tensor, Tensor]:
        arrays = (_array(geometry), _array(values))
        size, num_threads = (view.width, view.height), numba.get_num_threads()
        found = bin_splats(view.order, arrays[0], *size, kernels.TILE, kernels.MIN_ALPHA, num_threads)
        *entries, splat_starts, splat_entries = found
        blended, left, counts = kernels.blend_forward(*entries, *arrays, *size, num_threads)
        ctx.inputs = (*entries, *arrays, left, counts)
        ctx.splat_entries = (splat_starts, splat_entries)
        return torch.from_numpy(blended), torch.from_numpy(1.0 - left)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_blended, by_alpha = (_array(gradient) for gradient in gradients)
        rows = kernels.blend_backward(*ctx.inputs, by_blended, -by_alpha, numba.get_num_threads())
        by_geometry, by_values = kernels.sum_entries(*ctx.splat_entries, rows)
        return torch.from_numpy(by_geometry), torch.from_numpy(by_values), None
