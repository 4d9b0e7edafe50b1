"""From text to pictures, for training recipes, benchmarks and tests; pairs are sampled by `restage.diffusion`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.sampling import SampleStep, denoise, guided, initial_noise, latent_shape, step_noise
from restage.records import InputError

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone

__all__ = ["sample_images", "sample_latents"]


def sample_latents(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    seeds: Sequence[int],
    guidance: Float[Tensor, " batch"],
    num_steps: int = 15,
    solver: str = "dpmpp_2m",
) -> Iterator[SampleStep]:
    """Denoise under captions with classifier-free guidance, its strength per item (1 = none).

    Raises:
        InputError: there is not one seed for each caption, or a caption is too long.
    """
    if len(captions) != len(seeds) or not captions:
        raise InputError(f"expected one seed for each caption, got {len(captions)} captions and {len(seeds)} seeds")
    shape = latent_shape(backbone)
    predict = guided(backbone, backbone.encode_prompts(captions), backbone.encode_prompts([""]), guidance)
    yield from denoise(
        backbone.schedule,
        initial_noise(shape, seeds).to(backbone.device),
        predict=predict,
        timesteps=backbone.schedule.timesteps(num_steps),
        solver=solver,
        step_noise=lambda step: step_noise(shape, seeds, step).to(backbone.device),
    )


def sample_images(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 15,
    guidance: float = 5.0,
    solver: str = "dpmpp_2m",
) -> Float[Tensor, "batch 3 height width"]:
    """Text to images in [0, 1]; an image depends on its caption and seed (and, in the last bits, on the batch).

    Raises:
        InputError: as `sample_latents`.
    """
    scales = torch.full((len(captions),), float(guidance))
    *_, last = sample_latents(backbone, captions, seeds=seeds, guidance=scales, num_steps=steps, solver=solver)
    return backbone.decode_latents(last.latents)
