"""A folder of tiny random models laid out as `restage/assets`, for whole runs that show that everything works."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from miniature.tokenizer import MAX_TOKENS, build_tokenizer
from restage.diffusion.backbone import Backbone, save_backbone, save_half, save_tokenizer
from restage.diffusion.edit_models import save_edit_model, widen_unet
from restage.diffusion.editor import EditModel
from restage.diffusion.loading import load_tokenizer
from restage.diffusion.schedule import Schedule
from restage.records import write_json
from tests.shared import SHARED_FOLDER, only_worker, shared_folder

CHANNELS, WIDTH, LATENT_SIZE = 4, 16, 16
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=2,
    )


def _vae() -> AutoencoderKL:
    make: Any = AutoencoderKL  # its annotations take tuples of one only
    return make(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        sample_size=8 * LATENT_SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


@functools.cache
def tokenizer_of_the_world() -> Any:
    """The tokenizer as it is built today; the building takes seconds, so one worker does it for all."""
    if SHARED_FOLDER not in os.environ:  # not in a run of the tests
        return build_tokenizer()
    folder = shared_folder() / "tokenizer"
    with only_worker("tokenizer"):
        if not folder.exists():
            save_tokenizer(build_tokenizer(), folder)
    return load_tokenizer(folder)


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_tiny_models(folder: Path) -> Path:
    """Write `text_to_image/`, `clip/` and `edit_model/`; the same weights each time."""
    tokenizer = tokenizer_of_the_world()
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer))).eval()
        clip_config = CLIPConfig(text_config=_text_config(tokenizer), vision_config=vision, projection_dim=8)
        clip = CLIPModel(clip_config).eval()
        unet, vae = _unet().eval(), _vae().eval()
    backbone = Backbone(tokenizer, text_encoder, unet, vae, Schedule.from_config(SCHEDULER), SCHEDULER)
    save_backbone(backbone, folder / "text_to_image")
    save_half(clip, folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    write_json(folder / "clip" / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    save_edit_model(EditModel(backbone, widen_unet(unet)), folder / "edit_model", folder / "text_to_image")
    return folder
