"""The miniature's CLIP: small image and text towers trained on rendered pictures and their captions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from miniature.pictures import Pictures
from miniature.probe_pictures import NUM_CELLS, NUM_CLASSES, concatenate_labels, label_of
from miniature.rendered_pairs import render_pairs
from miniature.tokenizer import shared_tokenizer
from restage.diffusion.backbone import save_half, save_tokenizer
from restage.diffusion.clip import load_clip
from restage.diffusion.config import TrainingConfig
from restage.diffusion.loading import padded_ids
from restage.diffusion.training import train
from restage.pairs.clip_rule import calibrate_folder
from restage.pairs.encoding import ImagePair
from restage.records import Progress, derive_seed, write_json
from restage.world import grammar, second
from restage.world.description import COLORS, PATTERNS, Description, Place
from restage.world.places import find_objects

__all__ = ["RECIPE", "build_clip", "train_clip"]

RECIPE = TrainingConfig(num_steps=2400, batch_size=96, learning_rate=1e-3, num_warmup_steps=60, ema_decay=0.99)
TRAIN_SIZE = 96
"""Side, in pixels, that pictures are brought to: at 64 the kinds of small objects are lost."""
NUM_ALIKE = 4
"""Surroundings (ground and time of day) in a batch: few, so that it is objects that tell its pictures apart."""
NUM_EXACT_PAIRS = 140
"""Rendered pairs that say which thresholds suit it; `restage calibrate` takes those of the first edition."""
FALSE_PLACES, REPAINTED = 0.4, 0.15
"""Shares of the wrong captions that say a false place, where the scene has places, and, of the others, a pattern."""
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
        "max_position_embeddings": tokenizer.model_max_length,
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


_OPPOSITES = (("left", "right"), ("front", "back"), ("lit", "shaded"), ("toward", "away"), ("on", "near"))
_OPPOSITE = {**dict(_OPPOSITES), **{b: a for a, b in _OPPOSITES}}


def _false_places(place: Place, true: Sequence[Place]) -> list[Place]:
    """Return what is nearly a place that holds, and does not: the opposite side, or the objects interchanged."""
    found = [replace(place, relation=_OPPOSITE[place.relation])] if place.relation in _OPPOSITE else []
    if place.relation not in ("front", "back"):  # not every kind has a front
        found.append(replace(place, subject=place.anchors[0], anchors=(place.subject, *place.anchors[1:])))
    return [other for other in found if other not in true]


def _wrong_captions(pictures: Pictures, indices: Sequence[int], seed: int) -> list[str]:
    """Return for each picture a caption that is nearly right: of an edited scene, or with a place that is not so.

    As many say a place as of the right ones, so that saying none is no sign of being right.
    """
    found = []
    for index in indices:
        own = derive_seed("edited caption", seed, index)
        scene, place = pictures.descriptions[index], second.choose_place(pictures.places[index], own)
        rng = np.random.default_rng(own)
        wrong = _false_places(place, pictures.places[index]) if place else []
        if wrong and rng.uniform() < FALSE_PLACES:
            found.append(grammar.caption_of(scene, own, wrong[int(rng.integers(len(wrong)))]))
            continue
        edited = _repainted(scene, rng) if rng.uniform() < REPAINTED else grammar.sample_edit(scene, own).after
        if place and any(len(find_objects(edited, words)) != 1 for words in (place.subject, *place.anchors)):
            place = None
        found.append(grammar.caption_of(edited, own, place))
    return found


def _repainted(scene: Description, rng: np.random.Generator) -> Description:
    """Return a scene in which one object has another pattern, or loses the one it has."""
    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    color = item.color if item.color in COLORS else str(rng.choice(COLORS))
    pattern = str(rng.choice([p for p in ("", *PATTERNS) if p != item.pattern]))
    other = str(rng.choice([c for c in COLORS if c != color])) if pattern else ""
    painted = replace(item, color=color, pattern=pattern, second_color=other)
    return replace(scene, objects=(*scene.objects[:index], painted, *scene.objects[index + 1 :]))


def train_clip(
    folder: Path, pictures: Pictures, config: TrainingConfig = RECIPE, *, device: str = "cpu"
) -> Iterator[Progress]:
    """Train it, and save it to `<folder>/clip` in half precision, with the thresholds for pairs that suit it.

    Contrastive, with a caption that is nearly right beside each picture's own, and batches of few surroundings; a head
    that training throws away says what each cell shows.
    Command: `restage miniature train clip --num-pictures 36000 --compile`. 35 minutes on one core; in the world's first
    edition, of 256 held-out captions a picture's own is then the nearest in 97 %
    (docs/log/2026-11-27-clip-autoencoder-probe.md).
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
        captions = pictures.captions(indices, seed) + _wrong_captions(pictures, indices, seed)
        ids = padded_ids(tokenizer, captions, tokenizer.model_max_length).to(device)
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
    trained, exact = load_clip(folder / "clip", device), render_pairs(NUM_EXACT_PAIRS, seed=config.seed)
    pairs = (ImagePair(id=pair.prompt.id, **pair._asdict(), facts={}) for pair in exact)
    made_from = f"{NUM_EXACT_PAIRS} rendered pairs of seed {config.seed}"
    calibrate_folder(folder / "clip", trained, pairs, made_from=made_from)
