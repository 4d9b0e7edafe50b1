"""The plain twin of attention control: one pair per call, hooks, a controller in Python, all maps in memory.

Written from the papers and the formulas of their public code (which steps, layers and maps count), for tests to compare
with and for `benchmarks/pairs.py` to race against. Where those formulas and ours differ, `test_published.py` says by
what; other tests have numbers of steps at which windows hold the same ones. Maps are computed in at least float32, and
those of at most 32 x 32 queries are stored and summed over the steps, as Prompt-to-Prompt's `AttentionStore` does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from restage.diffusion.alignment import CaptionsDiffer, align_phrases, align_swaps, find_tokens
from restage.diffusion.config import ControlOptions
from restage.diffusion.sampling import initial_noise, step_noise

STORED_SIZE = 32
Store = dict[tuple[str, int], list[Tensor]]


def is_self_on(window: Sequence[float], step: int, num_steps: int) -> bool:
    """Prompt-to-Prompt's public code: `num_self_replace`."""
    return int(window[0] * num_steps) <= step < int(window[1] * num_steps)


def is_cross_on(window: Sequence[float], step: int, num_steps: int) -> bool:
    """Prompt-to-Prompt's public code: gates of words are a table of one step more than there are."""
    return int(window[0] * (num_steps + 1)) <= step < int(window[1] * (num_steps + 1))


class Controller:
    """Changes the attention of one pair: batch [(uncond source, uncond edit,) source, edit]."""

    has_public_maps = False
    """Whether word maps are the public code's in two things that ours do otherwise: the edit's are kept as they were
    replaced, and they are scaled up by the nearest pixel."""

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        target: str,
        *,
        swaps: Sequence[tuple[str, str]] = (),
        words: Sequence[str] = (),
        kept_words: Sequence[str] = (),
        options: ControlOptions | None = None,
        num_steps: int = 50,
        map_size: int = 16,
    ) -> None:
        self.tokenizer, self.source, self.target = tokenizer, source, target
        self.words, self.kept_words = words, kept_words
        self.options, self.num_steps, self.map_size = options or ControlOptions(), num_steps, map_size
        try:
            aligned = align_swaps(tokenizer, source, target, swaps) if swaps else None
        except CaptionsDiffer:
            aligned = None
        self.word_map, self.shared = aligned or align_phrases(tokenizer, source, target)
        self.step = 0
        self.layer_counts = {"self": 0, "cross": 0}
        self.step_store: Store = {}
        self.store: Store = {}

    # --- windows and strengths

    def token_gate(self) -> Tensor:
        gate = torch.full((len(self.shared),), float(is_cross_on(self.options.cross_window, self.step, self.num_steps)))
        for word, window in self.options.word_windows.items():
            for tokens in find_tokens(self.tokenizer, self.target, word):
                gate[list(tokens)] = float(is_cross_on(window, self.step, self.num_steps))
        return gate

    def strengths(self) -> Tensor:
        equalizer = torch.ones(len(self.shared))
        for word, strength in self.options.word_strengths.items():
            for tokens in find_tokens(self.tokenizer, self.target, word):
                equalizer[list(tokens)] = strength
        return equalizer

    # --- what a layer asks

    def keep_map(self, kind: str, maps: Tensor) -> None:
        if maps.shape[2] <= STORED_SIZE**2:
            self.step_store.setdefault((kind, maps.shape[2]), []).append(maps[-2:].clone())

    def cross(self, maps: Tensor) -> Tensor:
        if not self.has_public_maps:
            self.keep_map("cross", maps)
        source, edit = maps[-2], maps[-1]
        shared = self.shared.to(maps)
        refined = (source @ self.word_map.to(maps)) * shared + edit * (1 - shared)
        reweighted = refined * self.strengths().to(maps)
        gate = self.token_gate().to(maps)
        changed = torch.cat([maps[:-1], (reweighted * gate + edit * (1 - gate))[None]])
        if self.has_public_maps:  # it stores maps first, and then writes into what it has stored
            self.keep_map("cross", changed)
        return changed

    def self_kind(self, num_queries: int, layer: int, num_layers: int) -> str:
        options = self.options
        is_small = options.self_max_size is None or num_queries <= options.self_max_size**2
        first_layer = math.ceil(Fraction(options.self_first_layer).limit_denominator(1000) * num_layers)
        is_on = is_self_on(options.self_window, self.step, self.num_steps) and layer >= first_layer
        return options.self_attention if is_small and is_on else "none"

    def edit_rows(self, num_rows: int) -> list[int]:
        return [1, 3] if num_rows == 4 and self.options.self_unconditional else [num_rows - 1]

    # --- word maps

    def word_map_of(self, branch: int, words: Sequence[str], store: Store | None = None) -> Tensor:
        """Mean over layers and heads, summed over the steps (or of one step) and over the tokens of the words."""
        caption = (self.source, self.target)[branch]
        tokens = sorted({i for word in words for found in find_tokens(self.tokenizer, caption, word) for i in found})
        found = (self.store if store is None else store)["cross", self.map_size**2]
        maps = torch.stack([x[branch].mean(0) for x in found]).mean(0)
        return maps[:, tokens].sum(-1).unflatten(0, (self.map_size, self.map_size))

    def blend_mask(self, size: tuple[int, int]) -> Tensor:
        def found(words: Sequence[str], threshold: float, is_pooled: bool) -> Tensor:
            masks = []
            for branch in (0, 1):
                single = self.word_map_of(branch, words)
                if is_pooled:
                    padded, side = F.pad(single, (1, 1, 1, 1), value=0.0), self.map_size
                    single = torch.stack([padded[i : i + side, j : j + side] for i in range(3) for j in range(3)])
                    single = single.amax(0)
                mode = "nearest" if self.has_public_maps else "bilinear"
                resized = F.interpolate(single[None, None], size, mode=mode)[0, 0]
                masks.append(resized / resized.max() > threshold)
            return masks[0] | masks[1]

        blend = self.options.blend
        mask = found(self.words, blend.threshold, True) if self.words else torch.ones(size, dtype=torch.bool)
        return mask & ~found(self.kept_words, blend.kept_threshold, False) if self.kept_words else mask

    def has_maps_of_step(self) -> bool:
        return ("cross", self.map_size**2) in self.step_store

    def region(self, branch: int, num_queries: int) -> Tensor:
        """MasaCtrl's automatic mask: from the cross attention of this step, in the layers called so far."""
        single = self.word_map_of(branch, self.words, self.step_store)
        scaled = (single - single.min()) / (single.max() - single.min())
        side = math.isqrt(num_queries)
        region = (scaled >= self.options.region_threshold).float()[None, None]
        return F.interpolate(region, (side, side))[0, 0].flatten() > 0.5

    def end_step(self) -> None:
        for key, maps in self.step_store.items():
            if key in self.store:
                self.store[key] = [total + new for total, new in zip(self.store[key], maps, strict=True)]
            else:
                self.store[key] = maps
        self.step_store = {}
        self.step += 1

    def blended(self, latents: Tensor) -> Tensor:
        """Local blend, called after the end of a step: on once more steps are done than the start rounded down."""
        blend = self.options.blend
        has_begun = self.step > int(blend.start * self.num_steps) and blend.start < 1
        if not has_begun or not (self.words or self.kept_words):
            return latents
        mask = self.blend_mask((latents.shape[2], latents.shape[3])).to(latents)
        return torch.stack([latents[0], latents[0] + mask * (latents[1] - latents[0])])


def probabilities(query: Tensor, key: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    query, key = (x if x.dtype == torch.float64 else x.float() for x in (query, key))
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)


class ExplicitProcessor:
    def __init__(self, controller: Controller, layer: int, num_layers: int) -> None:
        self.controller, self.layer, self.num_layers = controller, layer, num_layers

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = probabilities(query, key, 0.0 if attention_mask is None else attention_mask[:, None])
        if encoder_hidden_states is None:
            self.controller.keep_map("self", maps)
            out = self.self_attention(query, key, value, maps)
        else:
            out = self.controller.cross(maps).to(value.dtype) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def self_attention(self, query: Tensor, key: Tensor, value: Tensor, maps: Tensor) -> Tensor:
        controller = self.controller
        kind = controller.self_kind(query.shape[2], self.layer, self.num_layers)
        out = list(maps.to(value.dtype) @ value)
        for row in controller.edit_rows(len(maps)) if kind != "none" else []:
            source = row - 1
            if kind == "inject":
                out[row] = maps[source].to(value.dtype) @ value[row]
            elif controller.options.region_threshold and controller.words and controller.has_maps_of_step():
                out[row] = self.by_region(query[row], key[source], value[source])
            else:
                out[row] = probabilities(query[row], key[source]).to(value.dtype) @ value[source]
        return torch.stack(out)

    def by_region(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        of_source, of_edit = (self.controller.region(branch, query.shape[1]) for branch in (0, 1))
        thing = probabilities(query, key[:, of_source]) @ value[:, of_source]
        rest = probabilities(query, key[:, ~of_source]) @ value[:, ~of_source]
        return torch.where(of_edit[:, None], thing, rest).to(value.dtype)


@contextlib.contextmanager
def explicitly_controlled(unet, controller: Controller) -> Iterator[None]:
    """Hook one controller into a UNet; layers are counted in the order of their calls."""
    parts = [unet.down_blocks, unet.mid_block, unet.up_blocks]
    layers = [module for part in parts for module in part.modules() if isinstance(module, Attention)]
    before = [layer.processor for layer in layers]
    counts = {True: 0, False: 0}
    for layer in layers:
        number = counts[layer.is_cross_attention]
        counts[layer.is_cross_attention] += 1
        layer.processor = ExplicitProcessor(controller, number, len(layers) // 2)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


def explicit_steps(
    backbone, controller: Controller, *, seed: int, guidance: float, shape: tuple[int, int, int], solver: str = "ddim"
) -> Iterator[Tensor]:
    """Yield the latents of source and edit after each step: DDIM, or Euler ancestral in the terms of k-diffusion."""
    schedule, num_steps = backbone.schedule, controller.num_steps
    table = [*schedule.timesteps(num_steps), None]
    device = backbone.device
    latents = initial_noise(shape, [seed]).expand(2, -1, -1, -1).to(device)
    text = backbone.encode_prompts(["", "", controller.source, controller.target])
    for step in range(num_steps):
        t = torch.full((4,), table[step], device=device)
        with torch.no_grad(), explicitly_controlled(backbone.unet, controller):
            doubled = torch.cat([latents, latents])
            epsilon = backbone.predict_noise(doubled, t, text)
        controller.end_step()
        epsilon = epsilon[:2] + guidance * (epsilon[2:] - epsilon[:2])
        kept = float(schedule.alphas_cumprod[table[step]])
        kept_to = 1.0 if table[step + 1] is None else float(schedule.alphas_cumprod[table[step + 1]])
        x0 = (latents - (1 - kept) ** 0.5 * epsilon) / kept**0.5
        if solver == "ddim":
            latents = kept_to**0.5 * x0 + (1 - kept_to) ** 0.5 * epsilon
        else:
            now, to = ((1 - kept) / kept) ** 0.5, ((1 - kept_to) / kept_to) ** 0.5
            up = min(to, (to**2 * (now**2 - to**2) / now**2) ** 0.5)
            down = (to**2 - up**2) ** 0.5
            moved = latents / kept**0.5 + epsilon * (down - now)
            latents = kept_to**0.5 * (moved + up * step_noise(shape, [seed], step).to(device))
        latents = controller.blended(latents)
        yield latents
