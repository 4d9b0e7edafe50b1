"""Tiny parts with random weights that pipelines share: tokenizers, text encoders, autoencoders, denoisers."""

# The types that diffusers declares for parts of pipelines are narrower than what it takes.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import importlib.util
from typing import Any

import diffusers
import transformers
from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers

from restage.diffusion.loading import pictures_only

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    """Make a tokenizer that knows every byte and the marks of a chat."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=list(MARKS))
    tokenizer.chat_template = CHAT
    return tokenizer


TOKENIZER = qwen_tokenizer()
IDS = dict(zip(MARKS, TOKENIZER.convert_tokens_to_ids(list(MARKS)), strict=True))
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": len(TOKENIZER),
}
VISION_IDS = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
}


def clip_text(tokenizer: Any, cls: type = transformers.CLIPTextModel) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config).eval()


def vae(latent_channels: int = 4, levels: int = 2, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=8,
        **settings,
    ).eval()


def qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        **VISION_IDS,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl() -> Any:
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **VISION_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config).eval()


def qwen_processor(cls: type = transformers.Qwen2VLProcessor, **settings: Any) -> Any:
    pictures = transformers.Qwen2VLImageProcessor(**settings)
    has_clips = importlib.util.find_spec("torchvision") is not None
    clips = transformers.Qwen2VLVideoProcessor() if has_clips else None
    with pictures_only():
        return cls(image_processor=pictures, tokenizer=TOKENIZER, video_processor=clips, chat_template=CHAT)


def unet(**settings: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        **settings,
    ).eval()
