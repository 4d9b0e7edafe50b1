"""The method of this project: edit key views together, keep what the masks leave out, move only the masked splats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.interface import AskedPictures, Edited, NoiseKeys
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.renewal import Births, Deaths, KeyViews, fade, find_gone, join_splats, seed_splats
from restage.edit.sharing import AnchoredNoise, ViewSharing, render_depths
from restage.records import InputError, derive_seed
from restage.regions.masks import lift_masks, render_masks
from restage.scenes.cameras import Cameras
from restage.scenes.config import LearningRates, RefineConfig
from restage.scenes.fit import Targets, refine_splats, render_views
from restage.scenes.splats import Splats

__all__ = ["Restage", "choose_key_views", "composite", "robust_weights", "sharpen", "trust"]

Views = Float[Tensor, "n 3 h w"]
Masks = Float[Tensor, "n h w"]

COLOR_RATES = LearningRates(means=0.0, log_scales=0.0, rotations=0.0, opacity_logits=0.0, sh=4e-2)
SHAPE_RATES = LearningRates(means=5e-4, log_scales=5e-3, sh=1e-2)


@dataclass(frozen=True, kw_only=True)
class Restage:
    """Edits key views together, lifts their masks to the splats, moves only those, lets some go and adds others.

    1. Key views are chosen far apart from each other and edited in one batch. They start from a few pictures of noise
       in turn: views with the same noise agree on what the editor chooses (whether a thing is gone, which shape), and
       over several its errors (too light a blue) average out. With `group_size` they attend to each other, too.
    2. The editor's soft masks say where. Outside, the target is the render of the unedited splats, pixel by pixel,
       so nothing there has a reason to move.
    3. The masks are lifted to the splats by blending weight (`lift_masks`); splats below a threshold are frozen
       and stay bit for bit what they were. What the moving splats show is rendered back and joined with the 2D
       masks, since it is sharper than the coarse grid that an editor's mask lives on.
    4. The others are fitted to the targets, colors first. What colors cannot explain is shape: splats go that the
       views ask for different things and are shown better without (`find_gone`), and new ones are seeded
       where views agree on a surface that is not there (`seed_splats`); not where most of the views is edited.
    5. Then shapes are fitted, too, in ever smaller steps, so that the last view has no more say than the others.
       Pixels that the views do not agree on weigh less (`robust_weights`), as do those at which the mask is undecided.

    With more than one of `noise_levels` the key views are refreshed: rendered, edited again from less noise, and fitted
    to once more. That brought nothing in progress on truth, and cost a third more time
    (docs/log/2026-11-27-edit-methods.md).

    The parts are known (masks lifted to Gaussians: GaussianEditor, Chen et al. 2023, arXiv 2311.14521; robust
    weights: iteratively reweighted least squares; sources of the others in their files); that the mask comes out of
    the edit model itself, and that all outside of it is pinned to the scene's own renders, is what this method adds.

    Memory: that of a fit step; a batch of views in the editor (with `group_size` all key views at once, for each
    variant of the guidance); four times the key views as pictures; and, while splats are seeded, about 150 bytes for
    each point that is tried (`Births`).
    """

    num_key_views: int = 24
    """Views that are edited; all training views if there are fewer."""
    noise_levels: tuple[float, ...] = (1.0,)
    """Share of the schedule that the first edit and each refresh start at."""
    color_steps: int = 120
    """Fit steps per round that move colors only."""
    shape_steps: int = 380
    """Fit steps per round that move everything."""
    cooldown_share: float = 0.5
    """Share of the last `shape_steps` over which the learning rates fall to zero."""
    noise: Literal["anchored", "shared", "own"] = "shared"
    """Which noise key views start from: that of the surfaces they show, few pictures of noise, or each its own."""
    num_noises: int = 4
    """Pictures of noise that key views take in turn where noise is shared."""
    group_size: int = 0
    """Views for each of those that attend to each other at a denoising step (the attention of DGE, Chen et al. 2024,
    arXiv 2404.18929, as in `joint`); 0 to edit each view by itself. With the shipped edit model attention makes views
    agree better, and yet brought no progress, a sixth to two thirds more spill and a quarter more time."""
    mask_low: float = 0.2
    mask_high: float = 0.5
    """Mask values up to the first count as 0, from the second on as 1."""
    lift_threshold: float = 0.3
    """Splats move whose lifted mask is above this."""
    is_mask_joined: bool = True
    """Whether the masks also cover all that the moving splats show, which is sharper than the editor's grid."""
    deaths: Deaths | None = field(default_factory=Deaths)
    """Which old splats are gone; None to keep them all."""
    births: Births | None = field(default_factory=Births)
    """Where new splats are seeded; None for none."""
    max_renewed_share: float = 0.5
    """Share of the key views that an edit may cover for splats to die and be born: a new ground or light covers more,
    and where an editor is not exact its views then agree by chance on surfaces that are not there."""
    robust_scale: float = 0.2
    """Colour difference, in [0, 1], at which a pixel weighs half."""

    def __post_init__(self) -> None:
        if not self.noise_levels or not all(0 < level <= 1 for level in self.noise_levels):
            raise InputError(f"expected at least one noise level, all in (0, 1], got {self.noise_levels}")
        if not 0 <= self.mask_low < self.mask_high <= 1:
            raise InputError(f"expected 0 <= mask_low < mask_high <= 1, got {self.mask_low} and {self.mask_high}")
        if not 0 <= self.max_renewed_share <= 1:
            raise InputError(f"expected max_renewed_share in [0, 1], got {self.max_renewed_share}")
        if not 0 <= self.cooldown_share <= 1:
            raise InputError(f"expected cooldown_share in [0, 1], got {self.cooldown_share}")
        if self.noise not in ("anchored", "shared", "own"):
            raise InputError(f"expected noise 'anchored', 'shared' or 'own', got {self.noise!r}")
        if self.num_key_views < 1 or self.group_size < 0 or self.num_noises < 1:
            raise InputError(
                "expected at least one key view and noise, and group_size >= 0, got "
                f"{self.num_key_views}, {self.num_noises} and {self.group_size}"
            )

    @property
    def num_steps(self) -> int:
        """Fit steps over all rounds."""
        return len(self.noise_levels) * (self.color_steps + self.shape_steps)

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(len(self.noise_levels) * min(self.num_key_views, num_views), min(self.noise_levels) < 1)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit, lift, fit; then refresh."""
        keys = choose_key_views(job.capture.cameras, self.num_key_views)
        cameras = job.capture.cameras[keys]
        unedited = render_views(job.splats, cameras)
        splats, done = job.splats.clone(), 0
        for number in range(len(self.noise_levels)):
            note = "editing the key views" if number == 0 else f"refresh {number}: editing the key views again"
            yield EditStep(done, self.num_steps, 0.0, splats, note)
            edited = self._edit(job, keys, splats, number)
            if edited.left_out:
                answered = edited.answered
                keys, cameras, unedited = [keys[place] for place in answered], cameras[answered], unedited[answered]
                edited = Edited(edited.images[answered], edited.masks[answered])
            # A mask that is nowhere quite 0 would let the whole scene move a little.
            masks = sharpen(edited.masks, self.mask_low, self.mask_high)
            # By the unedited splats: in the painted ones, what is gone would show what lies behind it.
            lifted = lift_masks(job.splats, cameras, masks)
            trainable = torch.where(lifted > self.lift_threshold, lifted, 0.0)
            if self.is_mask_joined:
                masks = torch.maximum(masks, render_masks(job.splats, cameras, (trainable > 0).float()))
            targets = composite(cameras, edited.images, unedited=unedited, masks=masks)
            # Splats born in an earlier round have no lifted mask, and are part of the edit.
            trainable = torch.cat([trainable, trainable.new_ones(len(splats) - len(job.splats))])
            for rates, num_steps in ((COLOR_RATES, self.color_steps), (SHAPE_RATES, self.shape_steps)):
                if rates is SHAPE_RATES:
                    if number == 0:
                        views = KeyViews(cameras, unedited, edited.images, masks)
                        splats, trainable = self._renew(splats, views, lifted=lifted, trainable=trainable)
                    # Only once colors fit does a residual tell a view that disagrees from one that was not fitted yet.
                    targets = trust(targets, render_views(splats, cameras), self.robust_scale)
                note = f"fitting {int((trainable > 0).sum())} of {len(splats)} splats to {len(keys)} key views"
                # Steps of earlier rounds stay large, since the targets are about to move.
                is_last = rates is SHAPE_RATES and number + 1 == len(self.noise_levels)
                config = RefineConfig(
                    steps=num_steps,
                    rates=rates,
                    cooldown_share=self.cooldown_share if is_last else 0.0,
                    seed=derive_seed(job.seed, "fit", number),
                )
                for step in refine_splats(splats, targets, config=config, trainable=trainable):
                    done, splats = done + 1, step.splats.clone()
                    yield EditStep(done, self.num_steps, step.loss, splats, note)

    def _edit(self, job: EditJob, keys: list[int], splats: Splats, number: int) -> Edited:
        cameras = job.capture.cameras[keys]
        # The first edit starts from the photographs, which hold details that the fit has lost.
        views = None if number == 0 else render_views(splats, cameras)
        seed = derive_seed(job.seed, "restage", number)
        noise: NoiseKeys = None
        if self.noise == "shared":
            noise = tuple(place % self.num_noises for place in range(len(keys)))
        if self.noise == "anchored":
            noise = AnchoredNoise(render_depths(job.splats, cameras))
        sharing = ViewSharing(cameras, self.group_size, seed) if self.group_size else None
        level = self.noise_levels[number]
        return job.editor.edit(
            job.batch(keys, views, noise_level=level, seed=seed, noise_keys=noise, sharing=sharing, may_leave_out=True)
        )

    def _renew(self, painted: Splats, views: KeyViews, *, lifted: Tensor, trainable: Tensor) -> tuple[Splats, Tensor]:
        """Once colors are fitted: let go of the splats that are gone, seed those that are missing, free what moves."""
        splats = painted
        # An edit of all there is says nothing about depth: everything would count as gone or missing.
        if float(views.masks.mean()) > self.max_renewed_share:
            return splats, trainable
        if self.deaths is not None:
            gone = find_gone(self.deaths, painted, views, lifted=lifted)
            if bool(gone.any()):
                splats = fade(painted, gone)
                shown = lift_masks(splats, views.cameras, views.masks)  # by what was hidden behind them, too
                trainable = torch.where(shown > self.lift_threshold, torch.maximum(trainable, shown), trainable)
        if self.births is not None:
            limit = round(self.births.max_share * len(splats))
            fresh = seed_splats(self.births, splats, views, max_count=limit)
            splats = join_splats(splats, fresh)
            trainable = torch.cat([trainable, trainable.new_ones(len(fresh))])
        return splats, trainable


def choose_key_views(cameras: Cameras, count: int) -> list[int]:
    """Choose views far apart from each other: farthest points among the camera positions, from the first on.

    Indices come in ascending order, all of them if there are no more than `count`.
    """
    positions = cameras.positions
    # Greedy farthest points: within a factor of two of the best spread, and the same for the same cameras.
    chosen = [0]
    distances = (positions - positions[0]).norm(dim=1)
    while len(chosen) < min(count, len(cameras)):
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (positions - positions[chosen[-1]]).norm(dim=1))
        distances[chosen] = -1
    return sorted(chosen)


def sharpen(masks: Masks, low: float, high: float) -> Masks:
    """Stretch soft masks so that values up to `low` become 0 and those from `high` on become 1."""
    return ((masks - low) / (high - low)).clamp(0, 1)


def composite(cameras: Cameras, edited: Views, *, unedited: Views, masks: Masks) -> Targets:
    """Edited views inside the masks, unedited ones outside; undecided pixels (mask 0.5) weigh half."""
    images = torch.lerp(unedited, edited, masks[:, None])
    # m^2 + (1 - m)^2 is 1 where the mask is sure and 1/2 where it is not.
    return Targets(cameras, images, masks.square() + (1 - masks).square())


def robust_weights(residuals: Masks, scale: float) -> Masks:
    """Weights 1 / (1 + (r / scale)^2) of the Cauchy loss, for one round of iteratively reweighted least squares."""
    return 1 / (1 + (residuals / scale).square())


def trust(targets: Targets, renders: Views, scale: float) -> Targets:
    """The same targets; pixels at which the fitted scene is off, since views disagree, weigh less."""
    weights = robust_weights((renders - targets.images).abs().mean(dim=1), scale)
    return Targets(targets.cameras, targets.images, weights if targets.weights is None else targets.weights * weights)
