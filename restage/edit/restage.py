"""The method of this project: edit key views together, keep what the masks leave out, move only the masked splats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.job import EditJob, EditStep
from restage.edit.lift import lift_masks, render_masks
from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.fit import FitStep, RefineConfig, Targets, refine_splats, render_views
from restage.scenes.optimizer import LearningRates
from restage.scenes.splats import Splats

__all__ = ["Restage", "choose_key_views", "composite", "robust_weights", "sharpen"]

COLOR_RATES = LearningRates(means=0.0, log_scales=0.0, rotations=0.0, opacity_logits=0.0, sh=4e-2)
SHAPE_RATES = LearningRates(means=5e-4, log_scales=5e-3, sh=1e-2)


@dataclass(frozen=True, kw_only=True)
class Restage:
    """Edits key views as one batch, lifts their masks to the splats and moves only those.

    1. Key views are chosen far apart from each other and edited in one batch; all of them start from the same
       noise, so that the editor's choices (which blue, which shape) agree between views as far as they can.
    2. The editor's soft masks say where. Outside, the target is the render of the unedited splats, pixel by pixel,
       so nothing there has a reason to move.
    3. The masks are lifted to the splats by blending weight (`lift_masks`); splats below a threshold are frozen
       and stay bit for bit what they were. What the moving splats show is rendered back and joined with the 2D
       masks, since it is sharper than the coarse grid that an editor's mask lives on.
    4. The others are fitted to the targets, colours first, then shape too. Pixels that the views do not agree on
       weigh less and less (`robust_weights`), as do pixels at which the mask is undecided.
    5. The key views are refreshed: rendered, edited again from less noise, and fitted to once more.

    The parts are known (masks lifted to Gaussians: GaussianEditor, Chen et al. 2023, arXiv 2311.14521; robust
    weights: iteratively reweighted least squares); that the mask comes out of the edit model itself, and that all
    outside of it is pinned to the scene's own renders, is what this method adds.
    """

    num_key_views: int = 24
    """Views that are edited; all training views if there are fewer."""
    noise_levels: tuple[float, ...] = (1.0, 0.6)
    """Share of the schedule that the first edit and each refresh start at."""
    color_steps: int = 60
    """Fit steps per round that move colours only."""
    shape_steps: int = 190
    """Fit steps per round that move everything."""
    is_noise_shared: bool = True
    """Whether all key views start from the same noise, or each from its own."""
    mask_low: float = 0.2
    mask_high: float = 0.5
    """Mask values up to the first count as 0, from the second on as 1."""
    lift_threshold: float = 0.3
    """Splats move whose lifted mask is above this."""
    is_mask_joined: bool = True
    """Whether the masks also cover all that the moving splats show, which is sharper than the editor's grid."""
    robust_scale: float = 0.2
    """Colour difference, in [0, 1], at which a pixel weighs half."""

    def __post_init__(self) -> None:
        if not self.noise_levels or not all(0 < level <= 1 for level in self.noise_levels):
            raise InputError(f"expected at least one noise level, all in (0, 1], got {self.noise_levels}")
        if not 0 <= self.mask_low < self.mask_high <= 1:
            raise InputError(f"expected 0 <= mask_low < mask_high <= 1, got {self.mask_low} and {self.mask_high}")
        if self.num_key_views < 1:
            raise InputError(f"expected at least one key view, got {self.num_key_views}")

    @property
    def num_steps(self) -> int:
        """Fit steps over all rounds."""
        return len(self.noise_levels) * (self.color_steps + self.shape_steps)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit, lift, fit; then refresh."""
        keys = choose_key_views(job.capture.cameras, self.num_key_views)
        cameras = job.capture.cameras[keys]
        unedited = render_views(job.splats, cameras)
        splats, done = job.splats.clone(), 0
        for number, noise_level in enumerate(self.noise_levels):
            note = "editing the key views" if number == 0 else f"refresh {number}: editing the key views again"
            yield EditStep(done, self.num_steps, 0.0, splats, note)
            renders = job.capture.images[keys] if number == 0 else render_views(splats, cameras)
            edited = job.editor.edit(
                renders,
                job.capture.images[keys],
                job.request,
                view_indices=tuple(job.view_indices[key] for key in keys),
                noise_level=noise_level,
                seed=derive_seed(job.seed, "restage", number),
                noise_keys=(0,) * len(keys) if self.is_noise_shared else None,
            )
            masks = sharpen(edited.masks, self.mask_low, self.mask_high)
            lifted = lift_masks(job.splats, cameras, masks)
            trainable = torch.where(lifted > self.lift_threshold, lifted, 0.0)
            if self.is_mask_joined:
                masks = torch.maximum(masks, render_masks(job.splats, cameras, (trainable > 0).float()))
            targets = composite(cameras, edited.images, unedited=unedited, masks=masks)
            note = f"fitting {int((trainable > 0).sum())} of {len(splats)} splats to {len(keys)} key views"
            for step in self._fit(splats, targets, trainable=trainable, seed=derive_seed(job.seed, "fit", number)):
                done, splats = done + 1, step.splats
                yield EditStep(done, self.num_steps, step.loss, splats, note)

    def _fit(self, splats: Splats, targets: Targets, *, trainable: Float[Tensor, " n"], seed: int) -> Iterator[FitStep]:
        """Colours first, then everything; before the second phase, pixels that views disagree on lose weight."""
        for rates, num_steps in ((COLOR_RATES, self.color_steps), (SHAPE_RATES, self.shape_steps)):
            if rates is SHAPE_RATES:
                residuals = (render_views(splats, targets.cameras) - targets.images).abs().mean(dim=1)
                weights = robust_weights(residuals, self.robust_scale)
                assert targets.weights is not None
                targets = Targets(targets.cameras, targets.images, targets.weights * weights)
            config = RefineConfig(steps=num_steps, rates=rates, seed=seed)
            for step in refine_splats(splats, targets, config=config, trainable=trainable):
                splats = step.splats.clone()
                yield step._replace(splats=splats)


def choose_key_views(cameras: Cameras, count: int) -> list[int]:
    """Choose views far apart from each other: farthest points among the camera positions, from the first on.

    Returns:
        Indices in ascending order, all of them if there are no more than `count`.
    """
    positions = cameras.positions
    chosen = [0]
    distances = (positions - positions[0]).norm(dim=1)
    while len(chosen) < min(count, len(cameras)):
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (positions - positions[chosen[-1]]).norm(dim=1))
        distances[chosen] = -1
    return sorted(chosen)


def sharpen(masks: Float[Tensor, "n h w"], low: float, high: float) -> Float[Tensor, "n h w"]:
    """Stretch soft masks so that values up to `low` become 0 and those from `high` on become 1."""
    return ((masks - low) / (high - low)).clamp(0, 1)


def composite(
    cameras: Cameras,
    edited: Float[Tensor, "n 3 h w"],
    *,
    unedited: Float[Tensor, "n 3 h w"],
    masks: Float[Tensor, "n h w"],
) -> Targets:
    """Edited views inside the masks, unedited ones outside; undecided pixels (mask 0.5) weigh half."""
    images = torch.lerp(unedited, edited, masks[:, None])
    return Targets(cameras, images, masks.square() + (1 - masks).square())


def robust_weights(residuals: Float[Tensor, "n h w"], scale: float) -> Float[Tensor, "n h w"]:
    """Weights 1 / (1 + (r / scale)^2) of the Cauchy loss, for one round of iteratively reweighted least squares."""
    return 1 / (1 + (residuals / scale).square())
