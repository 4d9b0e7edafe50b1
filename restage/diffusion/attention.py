"""Attention control as algebra on the values: what the edit branch attends to is taken from the source branch.

Replacing, refining and injecting attention are all linear in the probabilities along the key axis, so each is a change
of queries, keys or values before the usual fused attention; no probability map is ever in memory. Every pair brings its
own small tensors, so unlike pairs go through one batched UNet call. The sampler makes a `StepControl` for each step and
hands it to the backbone, which installs it with `controlled`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor, nn

from restage.records import InputError

__all__ = ["PairControl", "StepControl", "WordMaps", "controlled", "merge_controls"]


class WordMaps:
    """Running mean, over heads, layers and steps, of where the chosen words of each branch attend in the picture.

    These are the branch's own maps: where control replaces the attention of the edit branch, what it would have
    attended to is recorded, since what replaces it is in the source branch's map already.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Record at cross-attention layers whose queries are `size` x `size` for one of `sizes`."""
        self.sizes = tuple(sizes)
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, maps: Float[Tensor, "items pixels"]) -> None:
        """Add one layer's maps (mean over its heads); layers of other sizes must not be added."""
        size = round(maps.shape[-1] ** 0.5)
        added = maps.detach().float()
        self._sums[size] = self._sums[size] + added if size in self._sums else added
        self._counts[size] = self._counts.get(size, 0) + 1

    def mean(self) -> Float[Tensor, "items size size"]:
        """The mean map of each item at the largest recorded size; smaller ones are resized to it (bilinear).

        Raises:
            RuntimeError: nothing was recorded, which means that no layer has one of the asked sizes.
        """
        if not self._sums:
            raise RuntimeError(f"no cross-attention layer has queries at any of the sizes {self.sizes}")
        largest = max(self._sums)
        total = torch.zeros(())
        for size, maps in self._sums.items():
            square = maps.unflatten(-1, (1, size, size))
            total = total.to(maps) + F.interpolate(square, (largest, largest), mode="bilinear")[:, 0]
        return total / sum(self._counts.values())


_PAIR_TENSORS = ("word_map", "cross_until", "self_until", "source_words", "edit_words")


@dataclass(frozen=True, eq=False)
class PairControl:
    """What ties the edit branch to the source branch, for a batch of pairs; token axes are the padded prompt."""

    word_map: Float[Tensor, "pairs tokens tokens"]
    """M[source token, edit token]: where the attention of a source token goes (see `alignment`)."""
    cross_until: Float[Tensor, "pairs tokens"]
    """Share of the steps, in [0, 1], for which an edit token takes the source's attention; 0 = never (a new word)."""
    self_until: Float[Tensor, " pairs"]
    """Share of the steps, in [0, 1], for which the self attention is that of the source branch."""
    source_words: Float[Tensor, "pairs tokens"]
    """1 for the source prompt's tokens whose maps are recorded, 0 elsewhere; all 0 = record none."""
    edit_words: Float[Tensor, "pairs tokens"]
    """The same for the edit prompt."""
    self_max_size: int | None = None
    """Inject self attention at layers of at most this many pixels a side (Prompt-to-Prompt: 16); None = all layers."""
    self_unconditional: bool = True
    """Whether the unconditional half gets the injection too (the pair maker of InstructPix2Pix: yes)."""

    def __len__(self) -> int:
        """Number of pairs."""
        return self.word_map.shape[0]

    @property
    def has_words(self) -> Bool[Tensor, " pairs"]:
        """Which pairs have words to record."""
        return (self.source_words.sum(-1) + self.edit_words.sum(-1)) > 0

    def to(self, device: torch.device | str) -> PairControl:
        """The same with its tensors on `device`."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in _PAIR_TENSORS}
        return dataclasses.replace(self, **moved)

    def at_step(self, step: int, num_steps: int, maps: WordMaps | None = None) -> StepControl:
        """The control of step `step` (from 0) of `num_steps`; with `maps`, word maps are recorded into it."""
        share = step / num_steps
        return StepControl(
            pairs=self,
            cross_gate=(self.cross_until > share).to(self.cross_until.dtype),
            self_gate=self.self_until > share,
            maps=maps,
        )


def merge_controls(controls: Sequence[PairControl]) -> PairControl:
    """Batch the pairs of several controls, in order; their layer settings must be the same.

    Raises:
        InputError: none is given, or their settings differ.
    """
    settings = {(control.self_max_size, control.self_unconditional) for control in controls}
    if len(settings) != 1:
        raise InputError(f"controls to batch need the same layer settings, got {sorted(settings, key=str)}")
    merged: dict[str, Any] = {
        name: torch.cat([getattr(control, name) for control in controls]) for name in _PAIR_TENSORS
    }
    return dataclasses.replace(controls[0], **merged)


@dataclass(frozen=True, eq=False)
class StepControl:
    """A `PairControl` at one step: which of it is on."""

    pairs: PairControl
    cross_gate: Float[Tensor, "pairs tokens"]
    """1 where an edit token takes the source's attention at this step; fractions mix."""
    self_gate: Bool[Tensor, " pairs"]
    """Which pairs take the source's self attention at this step."""
    maps: WordMaps | None = None

    @functools.cached_property
    def is_cross_on(self) -> bool:
        """Whether any pair takes cross attention from its source at this step."""
        return bool(self.cross_gate.any())

    @functools.cached_property
    def is_self_on(self) -> bool:
        """Whether any pair takes self attention from its source at this step."""
        return bool(self.self_gate.any())


def _conditional_branches(num_pairs: int, batch: int) -> tuple[slice, slice]:
    """Rows of the source and of the edit items of the conditional half, which comes last in a batch."""
    if batch not in (2 * num_pairs, 4 * num_pairs):
        raise InputError(
            f"{num_pairs} controlled pairs need a batch of {2 * num_pairs} or {4 * num_pairs}, got {batch}"
        )
    return slice(batch - 2 * num_pairs, batch - num_pairs), slice(batch - num_pairs, batch)


def _inject_self(x: Tensor, gate: Tensor, *, unconditional: bool) -> Tensor:
    """Give edit items the queries (or keys) of their source items where the gate is on: SDPA(Q_s, K_s, V_e)."""
    num_pairs = gate.shape[0]
    branches = x.unflatten(0, (-1, 2, num_pairs))
    on = gate.view(1, -1, *(1 for _ in x.shape[1:])).expand(branches.shape[0], -1, *(-1 for _ in x.shape[1:]))
    if not unconditional and branches.shape[0] == 2:
        on = on & torch.tensor([False, True], device=x.device).view(2, *(1 for _ in x.shape))
    edit = torch.where(on, branches[:, 0], branches[:, 1])
    return torch.stack([branches[:, 0], edit], dim=1).flatten(0, 2)


def _cross_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, control: StepControl) -> Tensor:
    """`SDPA(Q_s, K_s, M diag(g) V_e) + SDPA(Q_e, K_e, diag(1-g) V_e)` for conditional edit items."""
    source, edit = _conditional_branches(len(control.pairs), query.shape[0])
    gate = control.cross_gate[:, None, :, None].to(value.dtype)
    from_source = control.pairs.word_map[:, None].to(value.dtype) @ (gate * value[edit])
    own = (1 - gate) * value[edit]
    out = F.scaled_dot_product_attention(
        torch.cat([query, query[source]]),
        torch.cat([key, key[source]]),
        torch.cat([value[: edit.start], own, from_source]),
        attn_mask=None if mask is None else torch.cat([mask, mask[source]]),
    )
    batch = query.shape[0]
    return torch.cat([out[: edit.start], out[edit] + out[batch:]])


def _record(query: Tensor, key: Tensor, mask: Tensor | None, control: StepControl, maps: WordMaps) -> None:
    """Sum the probabilities of the chosen words, as attention over an indicator of them in place of the values."""
    rows = slice(query.shape[0] - 2 * len(control.pairs), query.shape[0])
    words = torch.cat([control.pairs.source_words, control.pairs.edit_words])
    indicator = torch.zeros_like(key[rows])
    indicator[..., 0] = words[:, None].to(key.dtype)
    mask = None if mask is None else mask[rows]
    out = F.scaled_dot_product_attention(query[rows], key[rows], indicator, attn_mask=mask)
    maps.add(out[..., 0].mean(dim=1))


class _ControlledProcessor:
    """An attention processor of diffusers that applies a `StepControl`; otherwise does what `AttnProcessor2_0` does."""

    def __init__(self, control: StepControl) -> None:
        self.control = control
        self.num_calls = 0

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        self.num_calls += 1
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, context_length, _ = context.shape
        to_q, to_k, to_v, (to_out, dropout) = attn.to_q, attn.to_k, attn.to_v, cast(nn.ModuleList, attn.to_out)
        assert to_k is not None and to_v is not None
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (to_q(hidden_states), to_k(context), to_v(context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        mask = attn.prepare_attention_mask(attention_mask, context_length, batch)  # pyright: ignore[reportArgumentType]
        mask = None if mask is None else mask.view(batch, attn.heads, -1, mask.shape[-1])
        if encoder_hidden_states is None:
            out = self._self_attention(query, key, value, mask)
        else:
            out = self._cross_attention(query, key, value, mask)
        return dropout(to_out(out.transpose(1, 2).flatten(2))) / attn.rescale_output_factor

    def _self_attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        control, pairs = self.control, self.control.pairs
        is_small = pairs.self_max_size is None or query.shape[2] <= pairs.self_max_size**2
        if control.is_self_on and is_small:
            _conditional_branches(len(pairs), query.shape[0])
            query = _inject_self(query, control.self_gate, unconditional=pairs.self_unconditional)
            key = _inject_self(key, control.self_gate, unconditional=pairs.self_unconditional)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def _cross_attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        control = self.control
        if control.maps is not None and query.shape[2] in {size**2 for size in control.maps.sizes}:
            _record(query, key, mask, control, control.maps)
        if not control.is_cross_on:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if key.shape[2] != control.cross_gate.shape[1]:
            raise InputError(f"control is for {control.cross_gate.shape[1]} tokens, the text has {key.shape[2]}")
        return _cross_attention(query, key, value, mask, control)


def _attention_layers(unet: nn.Module) -> list[Attention]:
    """All attention layers, found by type.

    Raises:
        InputError: there are not as many as processors, not as many cross as self layers, or none.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    num_cross = sum(layer.is_cross_attention for layer in layers)
    num_expected = len(getattr(unet, "attn_processors", layers))
    if not layers or len(layers) != num_expected or 2 * num_cross != len(layers):
        raise InputError(
            f"attention control expects as many cross as self attention layers, {num_expected} in all; "
            f"found {num_cross} cross of {len(layers)} in {type(unet).__name__}"
        )
    unusual = [layer for layer in layers if layer.group_norm or layer.spatial_norm or layer.added_kv_proj_dim]
    if unusual or any(layer.norm_cross or layer.residual_connection for layer in layers):
        raise InputError(
            f"attention control knows only the layers of Stable Diffusion, not all of {type(unet).__name__}"
        )
    return layers


@contextlib.contextmanager
def controlled(unet: nn.Module, control: StepControl) -> Iterator[None]:
    """Within it, calls of the UNet are under `control`; afterwards the layers are as they were.

    The batch of a call is [source x n | edit x n], once or, for guidance, twice: [unconditional | conditional].

    Raises:
        InputError: the UNet's layers are not those that control knows, or the batch does not fit the pairs.
        RuntimeError: some layers were called and others were not.
    """
    layers = _attention_layers(unet)
    before = [layer.processor for layer in layers]
    processors = [_ControlledProcessor(control) for _ in layers]
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    if len({processor.num_calls for processor in processors}) != 1:
        raise RuntimeError("control reached only some attention layers; were attention processors replaced inside?")
