"""From text to pictures: noise, guidance and the solver around a text-to-image model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.solvers import SampleStep, denoise
from restage.records import InputError, derive_seed

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone, TextCondition

__all__ = ["initial_noise", "latent_shape", "sample_images", "sample_latents", "step_noise"]


def initial_noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch channels height width"]:
    """Unit noise of one item's `shape` (c, h, w) for each seed; an item's noise depends on its seed only."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


def step_noise(shape: Sequence[int], seeds: Sequence[int], step: int) -> Float[Tensor, "batch channels height width"]:
    """Unit noise of step `step` (from 0) for each seed, for solvers that add noise on their way."""
    return initial_noise(shape, [derive_seed(seed, "step", step) for seed in seeds])


def latent_shape(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the UNet was trained on."""
    config: Any = backbone.unet.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def guided(
    backbone: Backbone, text: TextCondition, empty_text: TextCondition, guidance: Float[Tensor, " batch"]
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Predictor with classifier-free guidance, `e0 + g (e1 - e0)`, both halves in one call."""
    both = empty_text.expand(len(text)).cat(text)
    scale = guidance.to(backbone.device).float().view(-1, 1, 1, 1)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        epsilon = backbone.predict_noise(torch.cat([latents, latents]), torch.cat([t, t]), both)
        unconditional, conditional = epsilon.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


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
