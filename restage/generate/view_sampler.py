"""Several views of a scene that is not there yet, or of one that is to become clearer, painted together.

What makes them agree: the add-on of several views (`restage.diffusion.view_attention`) where there is one; without it,
self-attention over all views, and noise that belongs to the surfaces of the scene.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from restage.diffusion.sampling import SampleStep, denoise, guided, initial_noise, latent_shape
from restage.diffusion.view_attention import load_view_attention, viewing
from restage.edit.editors.edit_model import share_attention
from restage.edit.sharing import AnchoredNoise, ViewSharing, render_depths
from restage.generate.job import GenerateJob
from restage.generate.rig import rays_of
from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats

__all__ = ["ViewSampler"]


@dataclass(frozen=True, kw_only=True)
class ViewSampler:
    """How views are painted together."""

    num_steps: int = 20
    """Denoising steps from full noise; from less noise in proportion fewer."""
    guidance: float = 5.0
    """Guidance on the caption."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise InputError(f"expected at least one denoising step, got {self.num_steps}")

    def paint(
        self, job: GenerateJob, cameras: Cameras, *, splats: Splats | None = None, level: float = 1.0, number: int = 0
    ) -> Iterator[SampleStep]:
        """Denoise views together under the caption; the latents of the last step are clean.

        Without splats they start from noise, and need the add-on; with splats from their renders, noised up to `level`
        in (0, 1]. `number` chooses the noise.
        """
        backbone, seed = job.backbone, derive_seed(job.seed, "views", number)
        table = backbone.schedule.timesteps(max(1, math.ceil(self.num_steps * level - 1e-9)), start=level)
        shape = latent_shape(backbone)
        if splats is None:
            seeds = [derive_seed(seed, "view noise", view) for view in range(len(cameras))]
            latents = initial_noise(shape, seeds).to(backbone.device)
        else:
            clean = backbone.encode_images(render_views(splats, cameras))
            noise = AnchoredNoise(render_depths(splats, cameras)).draw(shape, seed).to(clean)
            latents = backbone.schedule.add_noise(
                clean, noise, torch.full((len(clean),), table[0], device=clean.device)
            )
        text = backbone.encode_prompts([job.caption]).expand(len(cameras))
        scales = torch.full((len(cameras),), self.guidance)
        towards = guided(backbone, text, backbone.encode_prompts([""]), scales)
        with _together(job, cameras, shape[1], seed):
            yield from denoise(backbone.schedule, latents, predict=towards, timesteps=table)


def _together(job: GenerateJob, cameras: Cameras, side: int, seed: int) -> contextlib.AbstractContextManager[None]:
    unet = job.backbone.unet
    if job.views is None:
        return share_attention(unet, ViewSharing(cameras, 1, seed))  # every view is a key view
    add_on = load_view_attention(job.views, unet, job.backbone.device)
    return viewing(unet, add_on, rays_of(cameras, side)[None].to(job.backbone.device))
