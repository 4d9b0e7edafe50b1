"""A walk around the scene is edited as a clip, and the splats that show the difference are fitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.edit.clips.carried import Carried
from restage.edit.clips.job import edit_windows
from restage.edit.editors.interface import AskedPictures, Edited, ViewBatch
from restage.edit.job import EditJob, EditStep
from restage.records import InputError, derive_seed
from restage.regions.masks import lift_masks
from restage.scenes.cameras import Cameras
from restage.scenes.config import LearningRates, RefineConfig
from restage.scenes.fit import Targets, refine_splats, render_views

__all__ = ["Video", "difference_masks", "walk_around"]

COLOR_RATES = LearningRates(means=0.0, log_scales=0.0, rotations=0.0, opacity_logits=0.0, sh=4e-2)
SHAPE_RATES = LearningRates(means=5e-4, log_scales=5e-3, sh=1e-2)


@dataclass(frozen=True, kw_only=True)
class Video:
    """Edits the training views, in the order of a walk around the scene, as one clip, and fits splats to it.

    The road of VDFE (video diffusion for editing, CVPR 2026, as far as it could be read): an orbit is edited by an
    editor of videos, where edited and unedited frames differ is the mask, and the splats that it belongs to are fitted.
    Here the clip is edited by `carried`, the clip method of this package, with any editor of pictures. The frames are
    training views, and not renders of an orbit, so that editors which know views, and regions, work as they do
    elsewhere. Colors are fitted first, then shapes; splats whose lifted mask is low stay bit for bit.

    Memory: that of a fit step, of a window in the editor, and of all training views three times as pictures.
    """

    clip: Carried = field(default_factory=Carried)
    """How the walk is edited."""
    threshold: float = 0.04
    """A pixel belongs to the mask where edited and unedited frame differ by more than this, mean over channels."""
    lift_threshold: float = 0.3
    """Splats move whose lifted mask is above this."""
    color_steps: int = 120
    shape_steps: int = 380
    cooldown_share: float = 0.5
    """Share of the last `shape_steps` over which the learning rates fall to zero."""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and 0 <= self.lift_threshold < 1 and 0 <= self.cooldown_share <= 1):
            raise InputError(f"expected thresholds and shares in [0, 1], got {self}")
        if self.color_steps < 1 or self.shape_steps < 1:
            raise InputError(f"expected color_steps and shape_steps of at least 1, got {self}")

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        fresh = self.clip.window - self.clip.overlap
        return AskedPictures(num_views + self.clip.overlap * (num_views // fresh), from_renders=False)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Walk, edit, fit."""
        total = self.color_steps + self.shape_steps
        walk = walk_around(job.capture.cameras)
        edited = torch.zeros_like(job.capture.images)
        editor = _ViewEditor(job, walk)
        how = {"request": job.request, "editor": editor, "seed": derive_seed(job.seed, "video")}
        originals = job.capture.images[walk]
        for step in edit_windows(lambda places: originals[list(places)], len(walk), self.clip, **how):
            note = f"editing the walk, window {step.window + 1} of {step.num_windows}: {step.step.note}"
            yield EditStep(0, total, 0.0, job.splats.clone(), note)
            if step.finished is not None:
                start = step.finished.start
                edited[walk[start : start + len(step.finished.images)]] = step.finished.images
        masks = difference_masks(edited, job.capture.images, self.threshold)
        cameras = job.capture.cameras
        lifted = lift_masks(job.splats, cameras, masks)
        trainable = torch.where(lifted > self.lift_threshold, lifted, 0.0)
        unedited = render_views(job.splats, cameras)
        targets = Targets(cameras, torch.lerp(unedited, edited, masks[:, None]))
        splats, done = job.splats.clone(), 0
        for rates, num_steps in ((COLOR_RATES, self.color_steps), (SHAPE_RATES, self.shape_steps)):
            cooldown = self.cooldown_share if rates is SHAPE_RATES else 0.0
            seed = derive_seed(job.seed, "fit")
            config = RefineConfig(steps=num_steps, rates=rates, cooldown_share=cooldown, seed=seed)
            note = f"fitting {int((trainable > 0).sum())} of {len(splats)} splats to the edited walk"
            for step in refine_splats(splats, targets, config=config, trainable=trainable):
                done, fitted = done + 1, step.splats.clone()
                yield EditStep(done, total, step.loss, fitted, note)
                splats = fitted


@dataclass(frozen=True)
class _ViewEditor:
    """The job's editor, told which view of the scene each frame of the walk is."""

    job: EditJob
    walk: list[int]

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit frames, whose indices count the walk."""
        chosen = [self.walk[place] for place in batch.view_indices]
        asked = self.job.batch(
            chosen, batch.views, noise_level=batch.noise_level, seed=batch.seed, noise_keys=batch.noise_keys
        )
        return self.job.editor.edit(asked)


def walk_around(cameras: Cameras) -> list[int]:
    """All views in the order of a walk: from the first on, always to the nearest that was not visited yet."""
    distances = torch.cdist(cameras.positions, cameras.positions)
    walk = [0]
    while len(walk) < len(cameras):
        ahead = distances[walk[-1]].clone()
        ahead[walk] = torch.inf
        walk.append(int(ahead.argmin()))
    return walk


def difference_masks(
    edited: Float[Tensor, "n 3 h w"], originals: Float[Tensor, "n 3 h w"], threshold: float
) -> Float[Tensor, "n h w"]:
    """Where frames differ by more than a threshold, a pixel wider all around and with a soft edge."""
    differs = ((edited - originals).abs().mean(dim=1, keepdim=True) > threshold).float()
    wider = functional.max_pool2d(differs, 3, stride=1, padding=1)
    return functional.avg_pool2d(wider, 3, stride=1, padding=1)[:, 0]
