"""A loss that teaches words where they belong: the attention of an object's words should fall on that object.

The world knows every object's mask, so this costs nothing, and Prompt-to-Prompt and word masks depend on it. After
TokenCompose (Wang et al. 2023, arXiv 2312.03626), its token-level term.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional

from restage.world.description import Description
from restage.world.grammar import object_phrase
from restage.world.kernels import FIRST_OBJECT_ID, GROUND_ID

__all__ = ["AttentionShares", "WordTargets", "grounding_loss", "watched", "word_targets"]


class AttentionShares:
    """Gathers, while a UNet is watched, how each query divides its attention among the words (mean over heads)."""

    def __init__(self) -> None:
        self.maps: list[Float[Tensor, "b queries tokens"]] = []


class _WatchingProcessor:
    """Plain cross attention with its probabilities written out, so that they can be kept."""

    def __init__(self, shares: AttentionShares) -> None:
        self.shares = shares

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        key = attn.to_k(encoder_hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # pyright: ignore
        value = attn.to_v(encoder_hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # pyright: ignore
        shares = (query @ key.transpose(2, 3) * attn.scale).float().softmax(-1)
        self.shares.maps.append(shares.mean(1))
        if torch.is_grad_enabled():
            attended = shares.to(value.dtype) @ value
        else:  # as whoever samples without watching has it, to the last bit
            attended = functional.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).flatten(2)
        return attn.to_out[0](attended)  # pyright: ignore[reportOptionalSubscript]


@contextlib.contextmanager
def watched(unet: Any, size: int) -> Iterator[AttentionShares]:
    """Within it, each call of the UNet adds the cross attention of layers on pictures of `size` x `size` pixels.

    Those are the layers of the first down block and the last up block. Whoever calls the UNet more than once empties
    `maps` in between.
    """
    shares = AttentionShares()
    outer = [unet.down_blocks[0], unet.up_blocks[-1]]
    layers = [m for block in outer for m in block.modules() if isinstance(m, Attention) and m.is_cross_attention]
    if not layers:
        raise RuntimeError("this UNet has no cross attention in its first down block and its last up block")
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(_WatchingProcessor(shares))  # pyright: ignore[reportArgumentType]
        yield shares
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)  # pyright: ignore[reportArgumentType]
    if len(shares.maps) % len(layers) or any(maps.shape[1] != size**2 for maps in shares.maps):
        raise RuntimeError(f"expected attention maps of {len(layers)} layers of {size}x{size}, got {len(shares.maps)}")


class WordTargets(NamedTuple):
    """Where words should look."""

    rows: Int[Tensor, " words"]
    """The word's picture in the batch."""
    tokens: Float[Tensor, "words tokens"]
    """Its tokens: weights that sum to 1."""
    pixels: Float[Tensor, "words pixels"]
    """Its pixels, 0 or 1."""


def _told_words(caption: str, description: Description) -> Iterator[tuple[int, int, int]]:
    """Yield where the words that name what is seen begin and end in the caption, with the id of what they name.

    Of an object these are its size, colors, pattern and kind. Words of places name nothing that can be pointed at.
    """
    for index, item in enumerate(description.objects):
        # Another object may have the same size or color, so words count within the phrase of their own alone.
        phrase = object_phrase(item)
        start = caption.find(phrase)
        for word in phrase.split() if start >= 0 else ():
            if word not in ("a", "an", "and"):
                yield start, start + len(word), FIRST_OBJECT_ID + index
            start += len(word) + 1
    if ground := re.search(rf"\b{description.ground}\b", caption):
        yield *ground.span(), GROUND_ID


def word_targets(
    tokenizer: Any,
    captions: Sequence[str],
    descriptions: Sequence[Description],
    object_ids: Integer[Tensor, "b size size"],
) -> WordTargets:
    """Find the words of each object and of the ground, and where they should look; an empty caption has none."""
    told = [
        (row, *word)
        for row, (caption, description) in enumerate(zip(captions, descriptions, strict=True))
        for word in _told_words(caption, description)
    ]
    encoded, tokens = tokenizer(list(captions)), torch.zeros(len(told), tokenizer.model_max_length)
    for number, (row, start, end, _) in enumerate(told):
        first, last = encoded.char_to_token(row, start), encoded.char_to_token(row, end - 1)
        tokens[number, first : last + 1] = 1 / (last + 1 - first)
    rows, owners = (torch.tensor([word[i] for word in told], dtype=torch.long) for i in (0, 3))
    pixels = (object_ids[rows].flatten(1) == owners[:, None]).float()
    is_seen = pixels.sum(1) > 0
    return WordTargets(rows[is_seen], tokens[is_seen], pixels[is_seen])


def grounding_loss(
    maps: Sequence[Float[Tensor, "b queries tokens"]],
    rows: Int[Tensor, " words"],
    tokens: Float[Tensor, "words tokens"],
    pixels: Float[Tensor, "words pixels"],
    weights: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Mean over words of (1 - share of the word's attention that falls on its pixels)^2, weighted by picture."""
    total = torch.zeros((), device=pixels.device)
    for layer in maps:
        attention = torch.einsum("wpt,wt->wp", layer[rows], tokens)
        inside = (attention * pixels).sum(1) / attention.sum(1).clamp(min=1e-8)
        total = total + ((1 - inside).square() * weights[rows]).sum() / max(1, len(rows))
    return total / len(maps)
