"""The plain twin of attention control: every probability map in memory, one pair at a time, as the papers write it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from restage.diffusion.attention import PairControl


class ExplicitProcessor:
    """Attention of one pair, batch [(uncond source, uncond edit,) cond source, cond edit]."""

    def __init__(self, pair: PairControl, share: float, stored: list[Tensor]) -> None:
        self.pair, self.share, self.stored = pair, share, stored

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        maps = scores.softmax(-1)
        edited = maps.clone()
        if encoder_hidden_states is None:
            self._self(maps, edited)
        else:
            if maps.shape[2] == 16**2:
                words = torch.stack([self.pair.source_words[0], self.pair.edit_words[0]])
                self.stored.append((maps[-2:].mean(1) * words[:, None]).sum(-1))
            gate = (self.pair.cross_until[0] > self.share).to(maps)
            edited[-1] = maps[-2] @ self.pair.word_map[0].to(maps) * gate + maps[-1] * (1 - gate)
        return attn.to_out[0]((edited @ value).transpose(1, 2).flatten(2))

    def _self(self, maps: Tensor, edited: Tensor) -> None:
        limit = self.pair.self_max_size
        if self.share >= self.pair.self_until[0] or (limit is not None and maps.shape[2] > limit**2):
            return
        edited[-1] = maps[-2]
        if self.pair.self_unconditional and len(maps) == 4:
            edited[1] = maps[0]


@contextlib.contextmanager
def explicitly_controlled(unet, pair: PairControl, share: float, stored: list[Tensor]) -> Iterator[None]:
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = ExplicitProcessor(pair, share, stored)  # pyright: ignore[reportAttributeAccessIssue]
    yield
    for layer, processor in zip(layers, before, strict=True):
        layer.processor = processor


def blend_explicitly(mean_map: Tensor, threshold: float) -> Tensor:
    """Local blend's mask of one pair at the maps' own size, pixel by pixel."""
    masks = []
    for single in mean_map:
        padded = F.pad(single, (1, 1, 1, 1), value=0.0)
        pooled = torch.stack([padded[i : i + 16, j : j + 16] for i in range(3) for j in range(3)]).amax(0)
        masks.append(pooled / pooled.max() > threshold)
    return (masks[0] | masks[1]).float()
