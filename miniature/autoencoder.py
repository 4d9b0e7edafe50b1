"""The miniature's autoencoder: an f8 `AutoencoderDC`, 128x128 pictures <-> 16x16 latents of 8 channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderDC
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from miniature.pictures import Pictures
from restage.diffusion.backbone import load_vae
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import train
from restage.records import InputError, Progress

__all__ = ["RECIPE", "build_autoencoder", "random_crops", "train_autoencoder"]

RECIPE = TrainingConfig(num_steps=3100, batch_size=16, learning_rate=1.6e-3, num_warmup_steps=40, ema_decay=0.99)
BOTH_SHARE = 0.355
"""Share of all steps in which the encoder is trained, too. After them latents stay what they are, and a decoder to
which they are fixed finds edges and grain again that it had blurred."""
CROP = 64
"""Side of the squares that are cut out of the pictures to train on: a third of the time of whole ones, and no worse."""
LATENT_NOISE = 0.06
"""Noise on the latents in training, in units of their standard deviation: near latents then decode to near pictures."""
SPREAD_WEIGHT = 0.01
"""Weight of the penalty that keeps each latent channel at mean 0 and standard deviation 1; without it they grow."""


def build_autoencoder() -> AutoencoderDC:
    """Build it untrained: residual blocks only, pixel (un)shuffle between the sizes."""
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32, 64, 128, 128),
        decoder_block_out_channels=(32, 64, 128, 128),
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        scaling_factor=1.0,
    )


def random_crops(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 crop crop"]:
    """Cut a square from each picture, each at its own place, and mirror half of them."""
    offsets = torch.randint(images.shape[-1] - CROP + 1, (len(images), 2), generator=generator).tolist()
    crops = [image[:, y : y + CROP, x : x + CROP] for image, (y, x) in zip(images, offsets, strict=True)]
    flips = torch.rand(len(images), generator=generator) < 0.5
    return torch.stack([crop.flip(2) if flip else crop for crop, flip in zip(crops, flips.tolist(), strict=True)])


def _gradient_loss(output: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Tensor:
    """L1 of the differences between neighbors: edges stay sharp and flat areas flat."""
    error = output - target
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def train_autoencoder(
    folder: Path,
    pictures: Pictures,
    config: TrainingConfig = RECIPE,
    *,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train encoder and decoder, then the decoder alone, and save `<folder>/text_to_image/vae` in half precision.

    Each of the two has a rise and a fall of the learning rate of its own.
    Command: `restage miniature train autoencoder --num-pictures 36000`. With seeds 0 and 1: 35.9 and 35.8 dB on unseen
    renders (33.2 after the first 1,100 steps), 0.76 and then 0.54 s a step on one core of an old Xeon, half an hour
    in all. What ships (35.8 dB) was trained on whole pictures, the two parts as two commands.

    Args:
        folder: Of the models.
        pictures: The training set.
        config: How long and how fast; its steps are those of both.
        start: A text-to-image model whose decoder is trained on, while its encoder stays as it is: latents, and all
            that was trained on them, stay valid. None trains both from nothing.
        device: Where to train, such as `cuda`.

    Raises:
        InputError: the model to start from has an autoencoder of other shapes.
    """
    torch.manual_seed(config.seed)  # initial weights only
    model: Any = build_autoencoder()
    if start is not None:
        try:
            model.load_state_dict(load_vae(start / "vae").state_dict())
        except RuntimeError as error:
            raise InputError(f"the autoencoder to start from has other shapes: {str(error).splitlines()[0]}") from None
    model.to(device, memory_format=torch.channels_last)
    num_both = round(BOTH_SHARE * config.num_steps)
    if start is None:
        both = replace(config, num_steps=num_both)
        yield from _train(model, pictures, both, folder / "state" / "autoencoder", stage="autoencoder")
    model.encoder.requires_grad_(False)
    decoder = replace(config, num_steps=config.num_steps - num_both)
    yield from _train(model, pictures, decoder, folder / "state" / "decoder", stage="decoder")
    model.cpu().half().save_pretrained(folder / "text_to_image" / "vae")


def _train(model: Any, pictures: Pictures, config: TrainingConfig, state: Path, *, stage: str) -> Iterator[Progress]:
    """Train what of the model may change, from where `state` says an earlier session stopped."""
    parameter = next(model.encoder.parameters())
    device, is_encoder_trained = parameter.device, parameter.requires_grad

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        indices = torch.randint(len(pictures), (config.batch_size,), generator=generator).tolist()
        images = pictures.images(indices) * 2 - 1
        images = random_crops(images, generator)
        images = images.to(device, memory_format=torch.channels_last)
        latents = model.encode(images).latent
        noise = torch.randn(latents.shape, generator=generator).to(device) * LATENT_NOISE
        output = model.decode(latents + noise).sample.float()
        losses = {
            "l1": (output - images).abs().mean(),
            "mse": 2 * functional.mse_loss(output, images),
            "gradient": _gradient_loss(output, images),
        }
        if is_encoder_trained:
            mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
            losses["spread"] = SPREAD_WEIGHT * (mean.square() + (std - 1).square()).mean()
        return losses

    for step in train(model, loss_of, folder=state, config=config):
        yield Progress(stage=stage, done=step.step, total=step.num_steps, note=f"mse {step.losses['mse'] / 8:.5f}")
