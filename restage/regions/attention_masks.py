"""Where a text-to-image model sees a word in views: masks for editors that give none, and to compare ours with.

The views are noised, the model is asked once under the caption, and where the word is attended to is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.control import PairControl
from restage.diffusion.control_options import build_control
from restage.diffusion.pair_sampler import map_size_of
from restage.diffusion.sampling import initial_noise
from restage.diffusion.word_maps import WordMaps
from restage.records import InputError, derive_seed

__all__ = ["attention_masks"]

NUM_STEPS = 1
"""Control is asked for as at the only step of a trajectory; it then records, and changes no attention."""


def attention_masks(
    backbone: Backbone,
    images: Float[Tensor, "n 3 h w"],
    caption: str,
    words: Sequence[str],
    *,
    noise_level: float = 0.3,
    seed: int = 0,
) -> Float[Tensor, "n h w"]:
    """Soft masks of words of a caption: mean attention in layers near 16 pixels a side, divided by its maximum.

    They are as coarse as these layers; `restage.diffusion.segment.cut_masks` fits them to the pictures' colors.

    The words are those of the caption that name what the masks are to hold; the model is asked at `noise_level`, a
    share of the schedule in (0, 1].
    """
    if not words:
        raise InputError("expected words of the caption whose place is sought, got none")
    _, control = build_control(backbone.tokenizer, caption, caption, words=words)
    latents = backbone.encode_images(images)
    seeds = [derive_seed(seed, "attention", view) for view in range(len(images))]
    noise = initial_noise(latents.shape[1:], seeds).to(latents)
    t = torch.full((len(images),), backbone.schedule.timesteps(1, start=noise_level)[0], device=latents.device)
    noisy = backbone.schedule.add_noise(latents, noise, t)
    size = map_size_of(backbone.unet.config, latents.shape[-1])
    maps = WordMaps(size, len(images), latents.device)
    controls = PairControl.merge([control] * len(images))
    step = controls.at_step(NUM_STEPS, NUM_STEPS, maps=maps, device=latents.device)
    text = backbone.encode_prompts([caption]).expand(2 * len(images))
    backbone.predict_noise(torch.cat([noisy, noisy]), torch.cat([t, t]), text, control=step)
    found = maps.mean()[: len(images), 0]
    found = functional.interpolate(found[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    return (found / found.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).clamp(0, 1).to(images.device)
