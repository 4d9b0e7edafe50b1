"""A tiny random text-to-image model with all its real parts, and pairs to train on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from restage.diffusion.backbone import Backbone
from restage.diffusion.schedule import Schedule
from restage.records import PromptPair
from restage.train.examples import ExactPair
from tests.diffusion.tiny import tiny_tokenizer

CHANNELS, WIDTH, SIZE = 4, 32, 64


def tiny_unet(inputs: int = CHANNELS, outputs: int = CHANNELS, width: int = WIDTH) -> UNet2DConditionModel:
    """A random UNet of a few thousand parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=SIZE // 8,
            in_channels=inputs,
            out_channels=outputs,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            norm_num_groups=4,
            attention_head_dim=8,
        ).eval()


def tiny_backbone() -> Backbone:
    """A random backbone whose parts save and load as real ones do."""
    tokenizer: Any = tiny_tokenizer()
    make_vae: Any = AutoencoderKL  # its annotations take tuples of one only
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = make_vae(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            latent_channels=CHANNELS,
            norm_num_groups=4,
            sample_size=SIZE,
            scaling_factor=2.0,
        )
        text_config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        text_encoder = CLIPTextModel(text_config)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedule = Schedule.from_config(config)
    return Backbone(tokenizer, text_encoder.eval(), tiny_unet(), vae.eval(), schedule, config)


def tiny_pair(
    index: int, *, instruction: str = "make the cube blue", kind: str = "recolour", undo: str = ""
) -> ExactPair:
    """Make a pair in which a square on a plain ground changes its color."""
    generator = torch.Generator().manual_seed(index)
    ground, before, after = torch.rand(3, 3, 1, 1, generator=generator)
    mask = torch.zeros(SIZE, SIZE)
    left = 8 + 8 * (index % 4)
    mask[16:40, left : left + 16] = 1
    prompt = PromptPair(
        source=f"a red cube, number {index}",
        target=f"a blue cube, number {index}",
        instruction=instruction,
        kind=kind,
        undo=undo,
    )
    return ExactPair(torch.lerp(ground, before, mask), torch.lerp(ground, after, mask), mask, prompt)
