"""Attention control as data: what ties the edit branch of each pair to its source branch, and when.

`CrossControl`, `SelfControl` and `BlendControl` hold small tensors with one row for each pair, so that pairs of any
kinds (replaced words, added phrases, MasaCtrl, none at all) go through one batch. `control_options.build_control` makes
them from captions, `PairControl.at_step` says which of them are on at a step, and `attention` applies that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from restage.diffusion.word_maps import BlendControl, WordMaps
from restage.records import InputError

__all__ = ["INJECT", "MUTUAL", "NO_SELF", "CrossControl", "PairControl", "SelfControl", "StepControl"]

NO_SELF, INJECT, MUTUAL = 0, 1, 2
"""Kinds of self-attention control: none, the source's probabilities, the source's keys and values."""
ANY_SIZE = 2**15
"""Pixels a side that no layer has, and whose square an int32 still holds."""


def _is_open(window: Float[Tensor, "*rows 2"], step: int, num_steps: int) -> Bool[Tensor, "*rows"]:
    """Whether windows [from, until), in shares of the steps rounded down, hold a step."""
    # Windows are float32, and .8 x 10 steps must not become 7 by its last bit.
    edges = torch.floor(window * num_steps + 1e-4)
    return (edges[..., 0] <= step) & (step < edges[..., 1])


def _first_layers(shares: Float[Tensor, " pairs"], num_layers: int | None) -> Int[Tensor, " pairs"]:
    """Turn shares of the layers into numbers of layers.

    Numbers compare exactly. A share of k / n does not: a float32 one may lie above its own float64 value, and layer k
    would be skipped. A ten-thousandth of a layer is more than any such error.
    """
    if num_layers is None:
        if bool((shares > 0).any()):
            raise InputError("control that begins at one of the layers needs num_layers, their number")
        num_layers = 0
    return torch.ceil(shares.double() * num_layers - 1e-4).long()


def _select(part: Any, pairs: Int[Tensor, " chosen"]) -> Any:
    """Return a dataclass of tensors, or of such dataclasses, with these rows only."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    chosen = {name: x[pairs] if isinstance(x, Tensor) else _select(x, pairs) for name, x in values.items()}
    return type(part)(**chosen)


def _merge(parts: Sequence[Any]) -> Any:
    """Return the rows of several such dataclasses, in order."""
    merged: dict[str, Any] = {}
    for field in dataclasses.fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        merged[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else _merge(values)
    return type(parts[0])(**merged)


@dataclass(frozen=True, eq=False)
class CrossControl:
    """Where the attention that edit tokens get comes from; token axes are the padded prompt."""

    word_map: Float[Tensor, "pairs tokens tokens"]
    """M[source token, edit token]: where the attention of a source token goes (see `alignment`)."""
    shared: Float[Tensor, "pairs tokens"]
    """Share of an edit token's attention that is the source's: 1 where it has a counterpart, 0 for a new word."""
    window: Float[Tensor, "pairs tokens 2"]
    """When an edit token is controlled, [from, until) in shares of the steps; empty = never."""
    strength: Float[Tensor, "pairs tokens"]
    """Factor on an edit token's attention while it is controlled (Prompt-to-Prompt's reweighting); 1 = as it is."""


@dataclass(frozen=True, eq=False)
class SelfControl:
    """What of the source branch's self attention the edit branch uses."""

    kind: Int[Tensor, " pairs"]
    """`INJECT`: the source's probabilities (keeps layout); `MUTUAL`: its keys and values, MasaCtrl (keeps look)."""
    window: Float[Tensor, "pairs 2"]  # when, [from, until) in shares of the steps
    max_size: Int[Tensor, " pairs"]  # only at layers of at most this many pixels a side
    first_layer: Float[Tensor, " pairs"]
    """Only from this share of the self-attention layers on, in the order of their calls."""
    has_unconditional: Bool[Tensor, " pairs"]  # whether the unconditional half of guidance is controlled, too
    region_threshold: Float[Tensor, " pairs"]
    """`MUTUAL` only: above 0, the named things of both branches attend to each other and the rest to the rest; a word
    map, scaled to [0, 1], counts from this value on."""


@dataclass(frozen=True, eq=False)
class PairControl:
    """All control of a batch of pairs, on the CPU."""

    cross: CrossControl
    self_attention: SelfControl
    blend: BlendControl

    def __len__(self) -> int:
        """Number of pairs."""
        return self.cross.word_map.shape[0]

    @classmethod
    def merge(cls, controls: Sequence[PairControl]) -> PairControl:
        """Return the pairs of several controls, in order, whatever their kinds."""
        return _merge(controls)

    def select(self, pairs: Int[Tensor, " chosen"]) -> PairControl:
        """Return these pairs only, in this order."""
        return _select(self, pairs)

    @property
    def needs_maps(self) -> bool:
        """Whether any pair has words whose maps are to be recorded."""
        return bool(self.blend.has_words.any() or self.blend.has_kept.any())

    def at_step(
        self,
        step: int,
        num_steps: int,
        *,
        source_of: Int[Tensor, " pairs"] | None = None,
        num_sources: int | None = None,
        num_layers: int | None = None,
        maps: WordMaps | None = None,
        device: torch.device | str = "cpu",
    ) -> StepControl:
        """Return what is on at step `step` (from 0) of `num_steps`, on the device of the model.

        `source_of` says which source each pair is an edit of; None = each of its own, in order. `num_layers` is the
        number of the UNet's self-attention layers, needed where control begins at one of them. `maps` is where word
        maps are recorded, and taken from where control follows regions.
        """
        cross, own = self.cross, self.self_attention
        source_of = torch.arange(len(self)) if source_of is None else source_of.cpu()
        # Both factors together are Prompt-to-Prompt's gates: where a window is open, a shared token takes its source's
        # attention and a new one keeps its own, times its strength; where it is closed, every token has its own.
        is_open = _is_open(cross.window, step, num_steps).float()
        source_gain = is_open * cross.strength * cross.shared
        own_gain = is_open * cross.strength * (1 - cross.shared) + 1 - is_open
        # Pairs that take everything need no attention of their own, and pairs that take nothing no source's.
        takes, has_own = (source_gain != 0).any(dim=1), (own_gain != 0).any(dim=1)
        kind = torch.where(_is_open(own.window, step, num_steps), own.kind, NO_SELF)
        is_on = kind != NO_SELF
        first_layer = _first_layers(own.first_layer, num_layers)
        gates = SelfGates(kind, own.max_size, first_layer, own.has_unconditional, source_of)
        follows_regions = (kind == MUTUAL) & (own.region_threshold > 0) & self.blend.has_words
        if maps is not None:
            maps.begin_step()
        num_sources = int(source_of.max()) + 1 if num_sources is None else num_sources
        return StepControl(
            num_sources=num_sources,
            source_of=source_of.to(device),
            is_one_to_one=num_sources == len(self) and bool((source_of == torch.arange(len(self))).all()),
            is_cross_on=bool((source_gain != 0).any() or (own_gain != 1).any()),
            word_map=cross.word_map.to(device),
            source_gain=source_gain.to(device),
            own_gain=own_gain.to(device),
            whole=(takes & ~has_own).nonzero()[:, 0].to(device),
            mixed=(takes & has_own).nonzero()[:, 0].to(device),
            is_inject_on=bool((kind == INJECT).any()),
            is_mutual_on=bool((kind == MUTUAL).any()),
            gates=gates.to(device),
            gates_on_host=gates,
            largest_size=int(own.max_size[is_on].max()) if bool(is_on.any()) else 0,
            earliest_layer=int(first_layer[is_on].min()) if bool(is_on.any()) else 0,
            follows_regions=follows_regions.to(device) if maps is not None and bool(follows_regions.any()) else None,
            region_threshold=own.region_threshold.to(device),
            words=None if maps is None else self.blend.words().to(device),
            maps=maps,
        )


@dataclass(frozen=True, eq=False)
class SelfGates:
    """Whose self attention is controlled at a step, and at which layers; fields as in `SelfControl`."""

    kind: Int[Tensor, " pairs"]  # `NO_SELF` where the window is closed
    max_size: Int[Tensor, " pairs"]
    first_layer: Int[Tensor, " pairs"]  # number of the first self-attention layer that is controlled, counted from 0
    has_unconditional: Bool[Tensor, " pairs"]
    source_of: Int[Tensor, " pairs"]

    def to(self, device: torch.device | str) -> SelfGates:
        """Return the same gates on another device."""
        return SelfGates(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def is_open(self, kind: int, *, num_halves: int, size_squared: int, layer: int) -> Bool[Tensor, "halves pairs"]:
        """Return for which rows control of this kind is on, at the layer of this number and of so many pixels."""
        is_here = (self.kind == kind) & (self.max_size * self.max_size >= size_squared) & (self.first_layer <= layer)
        return torch.stack([is_here & self.has_unconditional, is_here][-num_halves:])

    def rows(self, gate: Bool[Tensor, "halves pairs"], num_sources: int) -> Int[Tensor, " rows"]:
        """Return for each row of a batch of halves x [sources | edits] its own number, or its source's if gated."""
        num_branches = num_sources + gate.shape[1]
        starts = num_branches * torch.arange(len(gate), device=gate.device)[:, None]
        own = starts + torch.arange(num_branches, device=gate.device)
        edits = torch.where(gate, starts + self.source_of, own[:, num_sources:])
        return torch.cat([own[:, :num_sources], edits], dim=1).flatten()


@dataclass(frozen=True, eq=False)
class StepControl:
    """A `PairControl` at one step, for a UNet call whose batch is [sources | edits], once or (guidance) twice."""

    num_sources: int
    source_of: Int[Tensor, " pairs"]
    is_one_to_one: bool  # whether each source has one edit, in the same order
    is_cross_on: bool
    """Whether any pair's cross attention is controlled at this step; the flags let layers skip what is off."""
    word_map: Float[Tensor, "pairs tokens tokens"]
    source_gain: Float[Tensor, "pairs tokens"]  # factor on the source's attention, moved to the edit token
    own_gain: Float[Tensor, "pairs tokens"]  # factor on the edit token's own attention
    whole: Int[Tensor, " whole"]  # pairs whose cross attention is their source's altogether
    mixed: Int[Tensor, " mixed"]  # pairs whose cross attention is partly their source's and partly their own
    is_inject_on: bool
    is_mutual_on: bool
    gates: SelfGates
    gates_on_host: SelfGates  # the same on the CPU, where rows can be counted without waiting for a GPU
    largest_size: int  # largest layer (pixels a side) whose self attention any pair controls at this step; 0 = none
    earliest_layer: int  # number of the first self-attention layer that any pair controls at this step
    follows_regions: Bool[Tensor, " pairs"] | None
    """Which pairs keep the named things and the rest apart in mutual attention; None if no pair does."""
    region_threshold: Float[Tensor, " pairs"]
    words: Float[Tensor, "branches_pairs 2 tokens"] | None
    maps: WordMaps | None

    def __len__(self) -> int:
        """Number of pairs."""
        return self.source_of.shape[0]
