"""Does the text-to-image model do as its captions say, and do its words look where their objects are?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.miniature.held_out import Captioned
from benchmarks.miniature.verdicts import Seen, Verdict, judge, place_is_right, seen_in
from miniature.grounding import watched
from miniature.probe import Probe, read_pictures
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.diffusion.alignment import token_mask
from restage.diffusion.backbone import Backbone
from restage.diffusion.config import LocalBlend
from restage.diffusion.sampling import denoise, initial_noise, latent_shape
from restage.diffusion.word_maps import BlendControl, blend_masks
from restage.records import InputError
from restage.world.grammar import KINDS

__all__ = ["Sample", "Sampling", "WordMask", "load_training_state", "mask_iou_of", "sample", "word_iou"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled; the defaults are those of `sample_images`."""

    steps: int = 15
    guidance: float = 5.0
    solver: str = "dpmpp_2m"
    batch_size: int = 16


class WordMask(NamedTuple):
    """Where the word of one object looks, and where that object is, on the latent grid."""

    kind: str
    attention: Float[Tensor, "16 16"]
    """Mean over steps, heads and layers."""
    mask: Bool[Tensor, "16 16"]
    """The mask that local blend makes of it."""
    truth: Bool[Tensor, "16 16"] | None
    """The object as the probe segments the picture; None where it sees no such object."""


class Sample(NamedTuple):
    """A sampled picture, what it shows, and its word masks, one for each object of the caption."""

    item: Captioned
    image: Float[Tensor, "3 128 128"]
    seen: Seen
    verdict: Verdict
    words: tuple[WordMask, ...]
    is_place_right: bool | None = None
    """Whether it shows the place that its caption says; None if it says none, or that cannot be told."""


def _sample_batch(backbone: Backbone, items: Sequence[Captioned], sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Pictures, and the mean attention to every token (batch, pixels, tokens)."""
    text = backbone.encode_text([item.caption for item in items])
    both = torch.cat([backbone.encode_text([""]).expand(len(items), -1, -1), text])
    shape = latent_shape(backbone)
    maps: list[Tensor] = []

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        with watched(backbone.unet, shape[1]) as shares:
            epsilon = backbone.predict_noise(torch.cat([latents, latents]), torch.cat([t, t]), both)
        maps.append(torch.stack([layer[len(items) :] for layer in shares.maps]).mean(0))
        unconditional, conditional = epsilon.chunk(2)
        return unconditional + sampling.guidance * (conditional - unconditional)

    noise = initial_noise(shape, [item.seed for item in items])
    table = backbone.schedule.timesteps(sampling.steps)
    *_, last = denoise(backbone.schedule, noise, predict=predict, timesteps=table, solver=sampling.solver)
    return backbone.decode_latents(last.latents).clamp(0, 1), torch.stack(maps).mean(0)


def local_blend_mask(attention: Float[Tensor, "words 16 16"]) -> Bool[Tensor, "words 16 16"]:
    """Threshold word maps with the code and the settings of local blend."""
    one, none = torch.ones(len(attention), 1), torch.zeros(len(attention), 1)
    settings, ones = LocalBlend(), torch.ones(len(attention))
    blend = BlendControl(
        source_words=one,
        edit_words=one,
        source_kept=none,
        edit_kept=none,
        start=settings.start * ones,
        threshold=settings.threshold * ones,
        kept_threshold=settings.kept_threshold * ones,
    )
    maps = attention[:, None].repeat(2, 2, 1, 1)
    return blend_masks(maps, blend, size=(attention.shape[1], attention.shape[2])) > 0.5


def _word_masks(
    backbone: Backbone, item: Captioned, attention: Float[Tensor, "pixels tokens"], classes: Int[Tensor, "16 16"]
) -> tuple[WordMask, ...]:
    found = []
    for thing in item.description.objects:
        tokens = token_mask(backbone.tokenizer, item.caption, [thing.kind])
        word_map = (attention @ tokens.to(attention)).view(1, *classes.shape)
        truth = classes == FIRST_KIND_CLASS + KINDS.index(thing.kind)
        mask = local_blend_mask(word_map)[0]
        found.append(WordMask(thing.kind, word_map[0], mask, truth if bool(truth.any()) else None))
    return tuple(found)


def sample(backbone: Backbone, items: Sequence[Captioned], probe: Probe, sampling: Sampling) -> list[Sample]:
    """Sample a picture of each caption and let the probe read it."""
    samples = []
    for start in range(0, len(items), sampling.batch_size):
        batch = items[start : start + sampling.batch_size]
        images, attention = _sample_batch(backbone, batch, sampling)
        readings = read_pictures(probe, images)
        for index, (item, seen) in enumerate(zip(batch, seen_in(readings), strict=True)):
            words = _word_masks(backbone, item, attention[index], readings.classes[index])
            # A word's truth is asked for only where the probe says that its object is there at all.
            words = tuple(word if word.kind in seen.colors else word._replace(truth=None) for word in words)
            is_place_right = place_is_right(item.place, readings.classes[index]) if item.place else None
            samples.append(Sample(item, images[index], seen, judge(seen, item.description), words, is_place_right))
    return samples


def mask_iou_of(mask: Bool[Tensor, "h w"], truth: Bool[Tensor, "h w"]) -> float:
    """Intersection over union; NaN where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else float("nan")


def word_iou(samples: Sequence[Sample]) -> dict[str, float]:
    """How well the words of the objects that are there point at them, mean over objects.

    Returns:
        `word_iou`, of the cells where the attention is above local blend's share of its maximum; `word_iou_blend`, of
        the whole mask of local blend, whose 3x3 max-pool leaves room around an object; `word_iou_blend_limit`, what
        that mask would score if the attention were the true mask itself (with objects of five cells on a side it is
        well below 1); `words_scored`, the share of the captions' objects that are there to be scored.
    """
    words = [word for item in samples for word in item.words]
    scored = [(word, word.truth) for word in words if word.truth is not None]
    masks = {
        "word_iou": [word.attention / word.attention.amax() > LocalBlend().threshold for word, _ in scored],
        "word_iou_blend": [word.mask for word, _ in scored],
        "word_iou_blend_limit": [local_blend_mask(truth[None].float())[0] for _, truth in scored],
    }
    truths = [truth for _, truth in scored]
    ious = {name: [mask_iou_of(*pair) for pair in zip(found, truths, strict=True)] for name, found in masks.items()}
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in ious.items()}
    return {**means, "words_scored": len(scored) / len(words)}


def load_training_state(parts: Mapping[str, torch.nn.Module], path: Path) -> int:
    """Put the averaged weights of a training in progress (`state.pt`) into its parts, by name; return the step.

    Raises:
        InputError: there is no such file, or its weights are of another architecture.
    """
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; expected the state.pt of a part that `restage miniature train` trains"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        start = f"{name}."
        average = {key.removeprefix(start): value for key, value in state["average"].items() if key.startswith(start)}
        try:
            part.load_state_dict(average)
        except RuntimeError as error:
            raise InputError(f"{path} does not fit the model: {str(error).splitlines()[0]}") from None
    return int(state["step"])
