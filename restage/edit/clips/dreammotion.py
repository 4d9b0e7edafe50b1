"""DreamMotion: the clip itself is moved by delta denoising scores, and held to how its source resembles itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.edit.clips.job import ClipJob, ClipStep, Windowed
from restage.edit.editors.interface import ClipScores, ReadKeys, score_model_of
from restage.edit.methods.distill import draw_timestep
from restage.edit.methods.idu import check_noise_range
from restage.records import InputError, derive_seed

__all__ = ["DreamMotion", "spatial_similarity_loss", "temporal_similarity_loss"]

Keys = Sequence[Float[Tensor, "_ _ _"]]
"""Frames, tokens and channels of each layer."""


def spatial_similarity_loss(edited: Keys, source: Keys) -> Tensor:
    """S-SSM: `1/N sum_n |SS^n - SS^n'|^2`, `SS^n_ij = cos(K_i, K_j)` of a frame's tokens; mean over pairs, layers."""
    losses = []
    for one, other in zip(edited, source, strict=True):
        first, second = (functional.normalize(keys.float(), dim=2) for keys in (one, other))
        losses.append((first @ first.mT - second @ second.mT).square().mean())
    return torch.stack(losses).mean()


def temporal_similarity_loss(edited: Keys, source: Keys) -> Tensor:
    """T-SSM: `|TS - TS'|^2`, `TS_ij = cos(M_i, M_j)` of the frames' mean keys; mean over pairs and layers."""
    losses = []
    for one, other in zip(edited, source, strict=True):
        first, second = (functional.normalize(keys.float().mean(dim=1), dim=1) for keys in (one, other))
        losses.append((first @ first.mT - second @ second.mT).square().mean())
    return torch.stack(losses).mean()


@dataclass(frozen=True, kw_only=True)
class DreamMotion(Windowed):
    """Starts from the clip and follows V-DDS inside of masks, with spatial and temporal self-similarity held.

    Jeong et al. 2024 (arXiv 2403.12002): `eps_w(x_t, t, y) - eps_w(xhat_t, t, yhat)` with one t and one noise for
    source and target, masked per frame, is followed without the UNet's Jacobian; similarities of self-attention keys at
    the noised clip are held to the source's, through it. Published: gradient descent at 0.4 for 200 steps on a video
    model, masks from the boxes of a detector. Here masks are the editor's own, and the model is one of pictures, whose
    frames the temporal similarity ties together. The weights of both losses and the layers of the keys are in no text
    that could be reached; here all layers count alike, losses are means over pairs of tokens or frames, times the
    elements of a frame's latents, as the score's gradient belongs to a sum. By construction shapes stay.

    An editor without a UNet (exact, grade) has no keys: then V-DDS and the mask are all there is.

    Memory: that of a window in the editor, and of the UNet's backward pass for it.
    """

    num_steps: int = 200
    learning_rate: float = 0.4
    """Of plain gradient descent on latents of unit variance."""
    guidance: float | None = None
    """Guidance on the text; None for what the model is best used with."""
    lowest_noise: float = 0.05
    highest_noise: float = 0.949
    """The noise level is drawn evenly between these shares of the schedule, as for DDS."""
    spatial_weight: float = 1.0
    """Weight of the spatial self-similarity loss; 0 leaves it out."""
    temporal_weight: float = 1.0
    """Weight of the temporal self-similarity loss; 0 leaves it out."""
    mask: Literal["editor", "none"] = "editor"
    """Where the clip may change: what the editor's masks say, or everywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise_range(self.lowest_noise, self.highest_noise)
        if self.num_steps < 1 or not self.learning_rate > 0 or min(self.spatial_weight, self.temporal_weight) < 0:
            raise InputError(f"expected steps of at least 1, a learning rate above 0 and weights from 0 on, got {self}")
        if self.mask not in ("editor", "none"):
            raise InputError(f"expected mask 'editor' or 'none', got {self.mask!r}")

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Distill."""
        model = score_model_of(job.editor)
        if not isinstance(model, ClipScores):
            raise InputError(f"{type(job.editor).__name__} offers no scores for clips; choose another editor")
        masks = torch.ones_like(job.frames[:, 0])
        if self.mask == "editor":
            yield ClipStep(0, self.num_steps, "finding out where the clip changes")
            soft = job.editor.edit(job.batch(noise_keys=(0,) * len(job.frames))).masks
            masks = ((soft - MASK_LOW) / (MASK_HIGH - MASK_LOW)).clamp(0, 1)
        source = model.encode(job.frames).detach()
        latents, fixed = source.clone(), 0
        if job.held is not None:
            fixed = len(job.held.images)
            latents[:fixed] = model.encode(job.held.images).detach()
        where = functional.adaptive_max_pool2d(masks[:, None], source.shape[2:])
        where[:fixed] = 0
        branches = model.branches(job.frames, job.request, view_index=job.indices[0], seed=job.seed)
        make_reader = getattr(model, "read_keys", None)
        is_held = self.spatial_weight > 0 or self.temporal_weight > 0
        read = make_reader(job.frames, job.request) if make_reader is not None and is_held else None
        for step in range(self.num_steps):
            seed = derive_seed(job.seed, "dreammotion", job.indices[0], step)
            t = draw_timestep(model.schedule, self.lowest_noise, self.highest_noise, seed=seed)
            noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed)).to(source)
            times = torch.full((len(source),), t, device=source.device)
            noised = [model.schedule.add_noise(clean, noise, times) for clean in (latents, source)]
            gradient = branches.edited(noised[0], t, self.guidance) - branches.source(noised[1], t, self.guidance)
            # At little noise a small change of the picture is a large one of the noise, and steps would overshoot.
            signal, sigma = model.schedule.coefficients(times, source)
            gradient = gradient * (sigma / signal).clamp_max(1)
            if read is not None:
                gradient = gradient + self._similarity_gradient(read, noised[0], noised[1], t)
            latents = latents - self.learning_rate * where * gradient
            if (step + 1) % REPORT_EVERY == 0 and step + 1 < self.num_steps:
                yield ClipStep(step + 1, self.num_steps, f"distilling at step {t} of the noise schedule")
        height, width = job.frames.shape[2:]
        images = model.decode(latents)[..., :height, :width].to(job.frames)
        if job.held is not None:
            images = torch.cat([job.held.images, images[fixed:]])
        images[fixed:] = torch.lerp(job.frames[fixed:], images[fixed:], masks[fixed:, None])
        yield ClipStep(self.num_steps, self.num_steps, "distilled", images, masks)

    def _similarity_gradient(self, read: ReadKeys, edited: Tensor, source: Tensor, timestep: int) -> Tensor:
        with torch.no_grad():
            expected = read(source, timestep, False)
        with torch.enable_grad():
            moved = edited.detach().requires_grad_(True)
            found = read(moved, timestep, True)
            loss = moved.new_zeros(())
            if self.spatial_weight:
                loss = loss + self.spatial_weight * spatial_similarity_loss(found, expected)
            if self.temporal_weight:
                loss = loss + self.temporal_weight * temporal_similarity_loss(found, expected)
            (gradient,) = torch.autograd.grad(loss * moved[0].numel() * len(moved), moved)
        return gradient


MASK_LOW, MASK_HIGH = 0.2, 0.5
REPORT_EVERY = 10
