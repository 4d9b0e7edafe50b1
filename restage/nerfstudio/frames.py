"""Between nerfstudio's cameras and splats and Restage's: axes, units, and the frame that nerfstudio's dataparser chose.

nerfstudio's cameras are OpenGL (y up, z back), and its dataparser turns, shifts and scales the world of a capture.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from restage.records import InputError
from restage.regions.masks import lift_masks, render_masks
from restage.scenes.cameras import Cameras
from restage.scenes.config import MAX_DEGREE
from restage.scenes.splats import Splats

__all__ = ["Similarity", "SplatHolder", "from_nerfstudio_cameras", "similarity_between", "splats_of"]
__all__ += ["to_nerfstudio_cameras"]

AXES = torch.tensor([1.0, -1.0, -1.0])
"""Column factors between OpenGL and OpenCV cameras, both ways."""


class Similarity(NamedTuple):
    """Maps a point x of one frame to `scale * rotation @ x + translation` in the other."""

    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, " 3"]
    scale: float


def from_nerfstudio_cameras(cameras: Any) -> Cameras:
    """Restage's cameras, in the same frame; lens distortion is left out."""
    sizes = {(int(w), int(h)) for w, h in zip(cameras.width.flatten(), cameras.height.flatten(), strict=True)}
    if len(sizes) != 1:
        raise InputError(f"expected training images of one size, got {sorted(sizes)}; crop them alike")
    width, height = sizes.pop()
    transforms = cameras.camera_to_worlds.float().cpu()
    camera_to_world = torch.eye(4).repeat(len(transforms), 1, 1)
    camera_to_world[:, :3, :3] = transforms[:, :, :3] * AXES
    camera_to_world[:, :3, 3] = transforms[:, :, 3]
    return Cameras(camera_to_world, cameras.get_intrinsics_matrices().float().cpu(), width, height)


def to_nerfstudio_cameras(cameras: Cameras, similarity: Similarity) -> Any:
    """Make nerfstudio's cameras, in the frame that the similarity leads to."""
    from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras

    rotations = similarity.rotation @ cameras.camera_to_world[:, :3, :3] * AXES
    positions = similarity.scale * cameras.positions @ similarity.rotation.T + similarity.translation
    intrinsics = cameras.intrinsics
    return NerfstudioCameras(
        camera_to_worlds=torch.cat([rotations, positions[:, :, None]], dim=2),
        fx=intrinsics[:, 0, :1].clone(),
        fy=intrinsics[:, 1, 1:2].clone(),
        cx=intrinsics[:, 0, 2:].clone(),
        cy=intrinsics[:, 1, 2:].clone(),
        width=cameras.width,
        height=cameras.height,
    )


def similarity_between(source: Cameras, target: Cameras) -> Similarity:
    """Return the similarity that leads from one frame to the other, from the same cameras seen in both."""
    shifts = source.positions - source.positions.mean(dim=0)
    moved = target.positions - target.positions.mean(dim=0)
    if len(source) < 2 or float(shifts.norm()) < 1e-6:
        raise InputError("expected at least two cameras at different places, to tell how the frames differ in scale")
    # The mean of many rotations that agree up to rounding, made a rotation again.
    products = target.camera_to_world[:, :3, :3].double() @ source.camera_to_world[:, :3, :3].double().transpose(1, 2)
    left, _, right = torch.linalg.svd(products.mean(dim=0))
    rotation = (left @ right).float()
    scale = float(moved.norm() / shifts.norm())
    translation = target.positions.mean(dim=0) - scale * rotation @ source.positions.mean(dim=0)
    mapped = scale * source.positions @ rotation.T + translation
    if float((mapped - target.positions).abs().max()) > 1e-3 * max(1.0, float(moved.norm())):
        raise InputError(
            "expected the cameras of the trained scene to be those of the capture, but for one shift, turn and scale; "
            "give its own folder, or train it with: nerfstudio-data --orientation-method none"
        )
    return Similarity(rotation, translation, scale)


def splats_of(model: SplatfactoModel) -> Splats:
    """The splats of a splatfacto as they are, on the CPU, in the frame that nerfstudio trained in."""
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
