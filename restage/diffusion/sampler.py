"""What sampling starts from, and guidance around a text-to-image model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import derive_seed

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone, TextCondition

__all__ = ["guided", "initial_noise", "latent_shape", "step_noise"]


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
