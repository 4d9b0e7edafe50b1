"""The splats of a splatfacto: taken out as Restage's, and held where an edit has no business."""

# nerfstudio is in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from restage.edit.masks.lift import lift_masks, render_masks
from restage.nerfstudio.installed import require_nerfstudio
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.splats import MAX_DEGREE, Splats

require_nerfstudio()
from nerfstudio.models.splatfacto import SplatfactoModel  # noqa: E402

__all__ = ["SplatHolder", "splats_of"]


def splats_of(model: SplatfactoModel) -> Splats:
    """The splats of a splatfacto as they are, on the CPU, in the frame that nerfstudio trained in.

    Raises:
        InputError: their spherical harmonics are of a degree above 3.
    """
    if not 0 <= model.config.sh_degree <= MAX_DEGREE:
        raise InputError(
            f"expected spherical harmonics of degree 0 to {MAX_DEGREE}, got {model.config.sh_degree}; "
            f"train with --pipeline.model.sh-degree {MAX_DEGREE}"
        )
    sh = torch.cat([model.shs_0[:, None], model.shs_rest], dim=1)
    return dataclasses.replace(_shapes_of(model), sh=sh.detach().float().cpu())


class SplatHolder:
    """Lets only the splats under an edit's masks move; the others stay bit for bit what they were.

    Gradients of the others are set to 0, which leaves Adam's fresh moments and so the parameters at rest. Splats
    that were let go once stay free, since their moments would carry them on. Splitting and culling are off.
    """

    def __init__(self, model: SplatfactoModel, cameras: Cameras, *, threshold: float) -> None:
        self._model = model
        self._cameras = cameras
        self._threshold = threshold
        self._splats = _shapes_of(model)
        self._free = torch.zeros(len(self._splats))
        self._hooks: list[RemovableHandle] = []
        model.strategy.refine_stop_iter = 0

    def let_go(self, masks: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
        """Free the splats that the masks lie on.

        Returns:
            The masks, joined with all that the free splats show.
        """
        lifted = lift_masks(self._splats, self._cameras, masks)
        self._free = torch.maximum(self._free, torch.where(lifted > self._threshold, lifted, 0.0))
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            parameter.register_hook(_scale_by(self._free.to(parameter.device)))
            for parameter in self._model.gauss_params.values()
        ]
        return torch.maximum(masks, render_masks(self._splats, self._cameras, (self._free > 0).float()))


def _scale_by(factors: Float[Tensor, " n"]) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factors.view(-1, *[1] * (gradient.ndim - 1))


def _shapes_of(model: SplatfactoModel) -> Splats:
    """The splats without color, whatever the degree of their spherical harmonics."""
    return Splats(
        means=model.means.detach().float().cpu(),
        log_scales=model.scales.detach().float().cpu(),
        rotations=torch.nn.functional.normalize(model.quats.detach().float().cpu(), dim=1),
        opacity_logits=model.opacities.detach().float().cpu()[:, 0],
        sh=torch.zeros(model.num_points, 1, 3),
    )
