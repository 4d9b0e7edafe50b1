"""The miniature's CLIP: small image and text towers trained on rendered pictures and their captions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from miniature.pictures import Pictures
from miniature.probe_pictures import NUM_CELLS, NUM_CLASSES, concatenate_labels, label_of
from miniature.tokenizer import MAX_TOKENS, shared_tokenizer
from restage.diffusion.backbone import save_half, save_tokenizer
from restage.diffusion.clip import load_clip
from restage.diffusion.training import TrainingConfig, train
from restage.pairs.clip_rule import calibrate_folder, exact_pairs
from restage.records import Progress, derive_seed, write_json
from restage.world.grammar import caption_of, sample_edit

__all__ = ["RECIPE", "build_clip", "train_clip"]

RECIPE = TrainingConfig(num_steps=2400, batch_size=96, learning_rate=1e-3, num_warmup_steps=60, ema_decay=0.99)
TRAIN_SIZE = 96
"""Side, in pixels, that pictures are brought to: at 64 the kinds of small objects are lost."""
NUM_ALIKE = 4
"""Surroundings (ground and time of day) in a batch: few, so that it is objects that tell its pictures apart."""
NUM_EXACT_PAIRS = 140
"""Rendered pairs that say which thresholds suit it, as in `restage calibrate`."""
CELLS_WEIGHT = 0.3
"""Weight of the loss on what each cell shows, beside the contrastive one."""


def build_clip(tokenizer: Any) -> CLIPModel:
    """Build it untrained: 2.5 M weights, 144 patches of 8x8 at 96x96."""
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


class ClipOutput(NamedTuple):
    """What a training step needs of the model's output."""

    images: Float[Tensor, "b d"]
    """Embedded pictures, of any length."""
    texts: Float[Tensor, "texts d"]
    scale: Float[Tensor, ""]
    """Inverse temperature."""
    classes: Float[Tensor, "b classes 16 16"]
    """Logits of what each cell shows: sky, ground, the kinds."""


class _ClipAndCells(nn.Module):
    """The model, and a head that says what each cell shows; only training needs the head."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        vision: Any = clip.config.vision_config
        self.cells = nn.Linear(vision.hidden_size, NUM_CLASSES)

    def forward(self, images: Float[Tensor, "b 3 size size"], ids: Int[Tensor, "texts tokens"]) -> ClipOutput:
        """Embed normalized pictures and tokens."""
        clip = self.clip
        vision, text = clip.vision_model(pixel_values=images), clip.text_model(input_ids=ids)
        cells = self.cells(vision.last_hidden_state[:, 1:]).float()
        side = math.isqrt(cells.shape[1])
        cells = cells.transpose(1, 2).unflatten(2, (side, side))
        return ClipOutput(
            clip.visual_projection(vision.pooler_output).float(),
            clip.text_projection(text.pooler_output).float(),
            clip.logit_scale.exp().clamp(max=100),
            functional.interpolate(cells, NUM_CELLS, mode="bilinear"),
        )


def contrastive_loss(images: Float[Tensor, "b d"], texts: Float[Tensor, "texts d"], scale: Tensor) -> Tensor:
    """Symmetric cross entropy over all picture-text pairs of a batch (Radford et al. 2021, figure 3).

    Texts beyond the first b are of no picture: each picture has to tell them from its own as well (hard negatives, as
    in NegCLIP, Yuksekgonul et al. 2023, arXiv 2210.01936).
    """
    logits = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T[: len(logits)], labels)) / 2


def _by_surroundings(pictures: Pictures) -> list[list[int]]:
    """Return the indices of the pictures of each ground and time of day."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, description in enumerate(pictures.descriptions):
        groups.setdefault((description.ground, description.time), []).append(index)
    return list(groups.values())


def _draw(groups: Sequence[list[int]], count: int, generator: torch.Generator) -> list[int]:
    """Draw different pictures of a few surroundings."""
    chosen = torch.randperm(len(groups), generator=generator)[:NUM_ALIKE].tolist()
    pool = [index for group in chosen for index in groups[group]]
    return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]


def _edited_captions(pictures: Pictures, indices: Sequence[int], seed: int) -> list[str]:
    """Return for each picture the caption of an edited scene, which is nearly right, and wrong."""
    found = []
    for index in indices:
        own = derive_seed("edited caption", seed, index)
        found.append(caption_of(sample_edit(pictures.descriptions[index], own).after, own))
    return found


def train_clip(
    folder: Path, pictures: Pictures, config: TrainingConfig = RECIPE, *, device: str = "cpu"
) -> Iterator[Progress]:
    """Train it, and save it to `<folder>/clip` in half precision, with the thresholds for pairs that suit it.

    Contrastive, with the caption of an edited scene beside each picture's own, and batches of few surroundings; a head
    that training throws away says what each cell shows.
    Command: `restage miniature train clip --num-pictures 36000 --compile`. 35 minutes on one core; then of 256 held-out
    captions a picture's own is the nearest in 97 % (docs/log/2026-11-27-clip-autoencoder-probe.md).
    """
    torch.manual_seed(config.seed)  # initial weights only
    tokenizer = shared_tokenizer(folder)
    model = _ClipAndCells(build_clip(tokenizer)).to(device)
    groups = _by_surroundings(pictures)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        indices = _draw(groups, config.batch_size, generator)
        images = pictures.images(indices).to(device)
        images = functional.interpolate(images, (TRAIN_SIZE, TRAIN_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        seed = derive_seed(config.seed, "captions", step)
        captions = pictures.captions(indices, seed) + _edited_captions(pictures, indices, seed)
        ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=MAX_TOKENS)["input_ids"]).to(device)
        output = model((images - 0.5) / 0.25, ids)
        labels = concatenate_labels([label_of(pictures.descriptions[i], pictures.object_ids[i]) for i in indices])
        cells = functional.cross_entropy(output.classes, torch.from_numpy(labels.classes).to(device))
        return {
            "contrastive": contrastive_loss(output.images, output.texts, output.scale),
            "cells": CELLS_WEIGHT * cells,
        }

    for step in train(model, loss_of, folder=folder / "state" / "clip", config=config):
        note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
        yield Progress(stage="clip", done=step.step, total=step.num_steps, note=note)
    save_half(model.clip, folder / "clip")
    save_tokenizer(tokenizer, folder / "clip")
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": TRAIN_SIZE}}
    write_json(folder / "clip" / "preprocessor_config.json", preprocessor)
    trained, pairs = load_clip(folder / "clip", device), exact_pairs(NUM_EXACT_PAIRS, seed=config.seed)
    made_from = f"{NUM_EXACT_PAIRS} rendered pairs of seed {config.seed}"
    calibrate_folder(folder / "clip", trained, pairs, made_from=made_from)
