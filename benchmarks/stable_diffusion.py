"""A model of Stable Diffusion 1.5's size and layout with random weights: for timing, never for pictures."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.tokenizer import build_tokenizer
from restage.diffusion.backbone import Backbone
from restage.diffusion.schedule import Schedule

__all__ = ["random_stable_diffusion"]

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
WIDTH, NUM_TOKENS = 768, 77


def random_stable_diffusion(size: int = 512, device: str = "cpu") -> Backbone:
    """Build it: 860 M parameters in the UNet, CLIP's text encoder of two layers, the VAE, for pictures of `size`.

    On a GPU the UNet is in half precision.
    """
    tokenizer: Any = build_tokenizer()
    tokenizer.model_max_length = NUM_TOKENS
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=WIDTH, attention_head_dim=8)
        make: Any = AutoencoderKL
        vae = make(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=12,
                max_position_embeddings=NUM_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    if device != "cpu":
        unet, vae = unet.half(), vae.half()
    parts: list[Any] = [unet, vae, text_encoder]
    for part in parts:
        part.eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Backbone(tokenizer, text_encoder, unet, vae, Schedule.from_config(SCHEDULER), SCHEDULER)
