"""The miniature's CLIP: small image and text towers trained on rendered pictures and their captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from restage.diffusion.backbone import save_half, save_tokenizer
from restage.diffusion.training import TrainingConfig, train
from restage.miniature.pictures import Pictures
from restage.miniature.tokenizer import MAX_TOKENS, shared_tokenizer
from restage.records import Progress, derive_seed, write_json

__all__ = ["RECIPE", "build_clip", "train_clip"]

RECIPE = TrainingConfig(num_steps=1500, batch_size=128, learning_rate=1e-3, num_warmup_steps=60, ema_decay=0.99)
TRAIN_SIZE = 64
"""Side, in pixels, that pictures are brought to: enough to tell kinds and colours, a quarter of the cost."""


def build_clip(tokenizer: Any) -> CLIPModel:
    """Build it untrained: 2.4 M weights, 64 patches of 8x8 at 64x64."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "image_size": TRAIN_SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def contrastive_loss(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], scale: Tensor) -> Tensor:
    """Symmetric cross entropy over all picture-text pairs of a batch (Radford et al. 2021, figure 3)."""
    logits = scale * functional.normalize(images.float(), dim=-1) @ functional.normalize(texts.float(), dim=-1).T
    labels = torch.arange(len(logits))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def train_clip(folder: Path, pictures: Pictures, config: TrainingConfig = RECIPE) -> Iterator[Progress]:
    """Train it, and save it to `<folder>/clip` in half precision.

    Command: `restage miniature train clip`. Figures and cost: docs/log.md.
    """
    torch.manual_seed(config.seed)  # initial weights only
    tokenizer = shared_tokenizer(folder)
    model = build_clip(tokenizer)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        indices = torch.randperm(len(pictures), generator=generator)[: config.batch_size].tolist()
        images = functional.avg_pool2d(pictures.images(indices), 128 // TRAIN_SIZE)
        captions = pictures.captions(indices, derive_seed(config.seed, "captions", step))
        ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=MAX_TOKENS)["input_ids"])
        vision = model.visual_projection(model.vision_model(pixel_values=(images - 0.5) / 0.25).pooler_output)
        text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        return {"contrastive": contrastive_loss(vision, text, model.logit_scale.exp().clamp(max=100))}

    for step in train(model, loss_of, folder=folder / "state" / "clip", config=config):
        yield Progress(stage="clip", done=step.step, total=step.num_steps, note=f"loss {step.losses['loss']:.4f}")
    save_half(model, folder / "clip")
    save_tokenizer(tokenizer, folder / "clip")
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": TRAIN_SIZE}}
    write_json(folder / "clip" / "preprocessor_config.json", preprocessor)
