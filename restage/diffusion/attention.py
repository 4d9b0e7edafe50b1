"""Attention control as algebra on the values: what the edit branch attends to is taken from the source branch.

Replacing, refining, reweighting and injecting attention are all linear in the probabilities along the key axis, so
each is a change of queries, keys or values before the usual fused attention. No probability map is in memory but, one
layer at a time, those that the word maps of small layers are taken from. A batch is [sources | edits], for guidance
twice, [unconditional | conditional]; several edits may share a source. The control of a step is an argument of the
UNet call: one set of processors, and one compiled UNet, serve all steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from restage.diffusion.control import INJECT, MUTUAL, StepControl
from restage.records import InputError

__all__ = ["attention_layers", "controlled", "num_self_layers", "watched_keys"]


def _num_halves(control: StepControl, rows: int) -> int:
    """Return how many times the batch holds all branches: once, or twice with guidance."""
    branches = control.num_sources + len(control)
    if rows not in (branches, 2 * branches):
        raise InputError(
            f"{len(control)} controlled pairs of {control.num_sources} sources need a batch of {branches} or "
            f"{2 * branches}, got {rows}"
        )
    return rows // branches


class _Taken(NamedTuple):
    """Which rows of a batch are projected, and which of the projected rows each row of the batch then uses."""

    needed: Tensor | None  # rows to project; None = all
    place: Tensor  # for each row of the batch, its place among the projected ones


class _SelfTaken(NamedTuple):
    """What a self-attention layer takes from the sources for the edits; None = every row has its own."""

    query: _Taken | None = None
    key: _Taken | None = None
    value: _Taken | None = None


def _taken(control: StepControl, hidden_states: Tensor, layer: int) -> _SelfTaken:
    """`SDPA(Q_s, K_s, V_e)` for edits that take the source's probabilities, `SDPA(Q_e, K_s, V_s)` for MasaCtrl's.

    What an edit takes from its source is not computed for the edit. A compiled UNet computes it for all rows, since its
    shapes must not vary.
    """
    batch, size_squared, _ = hidden_states.shape
    where = {"num_halves": _num_halves(control, batch), "size_squared": size_squared, "layer": layer}
    if size_squared > control.largest_size**2 or layer < control.earliest_layer:
        return _SelfTaken()
    # Row counts decide shapes. Read from the GPU they would stall it at every layer, so they come from the CPU's copy;
    # a compiled graph counts nothing and must not leave the device.
    is_compiling = torch.compiler.is_compiling()
    gates = control.gates if is_compiling else control.gates_on_host
    is_inject, is_mutual = gates.is_open(INJECT, **where), gates.is_open(MUTUAL, **where)

    def rows(gate: Tensor) -> _Taken:
        place = gates.rows(gate, control.num_sources)
        # `place` names a source's row several times; each is projected once and then copied to its edits.
        if is_compiling:
            return _Taken(None, place)
        needed, place = place.unique(return_inverse=True)
        device = control.source_of.device
        return _Taken(needed.to(device), place.to(device))

    # Injected probabilities come from queries and keys, mutual attention from keys and values: keys serve both.
    return _SelfTaken(
        query=rows(is_inject) if control.is_inject_on else None,
        key=rows(is_inject | is_mutual),
        value=rows(is_mutual) if control.is_mutual_on else None,
    )


def _project(
    layer: nn.Module, x: Float[Tensor, "rows length channels"], taken: _Taken | None
) -> Float[Tensor, "rows length inner"]:
    if taken is None:
        return layer(x)
    return layer(x if taken.needed is None else x.index_select(0, taken.needed)).index_select(0, taken.place)


def _attention_by_region(query: Tensor, key: Tensor, value: Tensor, control: StepControl, layer: int) -> Tensor:
    """Mutual attention in which the thing attends to the thing and the rest to the rest (MasaCtrl with masks)."""
    halves, side = _num_halves(control, query.shape[0]), round(query.shape[2] ** 0.5)
    is_mutual = control.gates.is_open(MUTUAL, num_halves=halves, size_squared=query.shape[2], layer=layer)
    assert control.maps is not None and control.follows_regions is not None
    regions = control.maps.regions(control.region_threshold, control.follows_regions)
    of_source, of_edit = (F.interpolate(x[:, None].float(), (side, side)).flatten(1) > 0.5 for x in regions)
    out = []
    # Two passes over the same keys, one that sees only the thing and one that sees only the rest; which of them a pixel
    # takes depends on where it lies in the edit, whose thing may have moved.
    for keys in (of_source, ~of_source):
        allowed = torch.where(is_mutual[:, :, None], keys, True)
        # Sources, and edits whose gate is closed, see everything in both passes, so that either is right for them.
        everything = torch.ones(halves, control.num_sources, side * side, dtype=torch.bool, device=keys.device)
        bias = torch.zeros((), dtype=query.dtype, device=query.device).masked_fill(
            # The least finite number, not -inf: a row that may see nothing must not turn into NaN.
            ~torch.cat([everything, allowed], dim=1).flatten(0, 1)[:, None, None],
            torch.finfo(query.dtype).min,
        )
        out.append(F.scaled_dot_product_attention(query, key, value, attn_mask=bias).unflatten(0, (halves, -1)))
    thing, rest = out
    is_thing = torch.where(is_mutual[:, :, None], of_edit, True)[:, :, None, :, None]
    edits = torch.where(is_thing, thing[:, control.num_sources :], rest[:, control.num_sources :])
    return torch.cat([thing[:, : control.num_sources], edits], dim=1).flatten(0, 1)


def _source_rows(control: StepControl, edits_start: int) -> slice | Tensor:
    """Return where, in the conditional half, the source of each edit is."""
    # Where each source has its one edit in order, a slice views the rows; indices would copy them.
    start = edits_start - control.num_sources
    return slice(start, edits_start) if control.is_one_to_one else control.source_of + start


def _rows(x: Float[Tensor, "rows heads length inner"], rows: Tensor) -> Float[Tensor, "some heads length inner"]:
    """Rows in the order of memory that projections have, so that whole rows are copied."""
    return x.transpose(1, 2).index_select(0, rows).transpose(1, 2)


def _cross_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, control: StepControl) -> Tensor:
    """`SDPA(Q_s, K_s, M diag(g_s) V_e) + SDPA(Q_e, K_e, diag(g_e) V_e)` for the edits of the conditional half.

    Edits with `g_e = 0` (words were swapped, no more) have the first term in the place of the second, which costs
    nothing. A compiled UNet adds both for all, since its shapes must not vary.
    """
    if control.maps is not None and query.shape[2] == control.maps.size**2:
        _record(query, key, mask, control)
    if not control.is_cross_on:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Weights of tokens are linear in attention, (A_s M) diag(g) V = A_s (M diag(g) V). So they go onto the values, of
    # tokens x channels, and the probabilities, pixels x tokens for each head, are never formed.
    if key.shape[2] != control.source_gain.shape[1]:
        raise InputError(f"control is for {control.source_gain.shape[1]} tokens, the text has {key.shape[2]}")
    _num_halves(control, query.shape[0])
    # Control of words acts on the conditional half alone, whose edits are the last rows of the batch.
    start, is_compiling = query.shape[0] - len(control), torch.compiler.is_compiling()
    sources = control.source_of + (start - control.num_sources)
    source_gain, own_gain = (g[:, None, :, None].to(value.dtype) for g in (control.source_gain, control.own_gain))
    moved = control.word_map[:, None].to(value.dtype) @ (source_gain * value[start:])
    own, own_query, own_key, own_mask = own_gain * value[start:], query, key, mask
    # Edits that are their source's altogether: source queries and keys with moved values, in the one call made anyway.
    if not is_compiling and len(control.whole):
        own = own.index_copy(0, control.whole, moved[control.whole])
        place = torch.arange(query.shape[0], device=query.device)
        place[start + control.whole] = sources[control.whole]
        own_query, own_key = _rows(query, place), _rows(key, place)
        own_mask = None if mask is None else mask[place]
    own = torch.cat([value[:start], own])
    out = F.scaled_dot_product_attention(own_query, own_key, own, attn_mask=own_mask)
    # Only edits that mix both need a second call, for the source's term of the sum.
    if is_compiling or len(control.mixed) == len(control):
        of, to = _source_rows(control, start), slice(start, None)
        of_query, of_key = query[of], key[of]
    elif len(control.mixed):
        of, to, moved = sources[control.mixed], start + control.mixed, moved[control.mixed]
        of_query, of_key = _rows(query, of), _rows(key, of)
    else:
        return out
    from_source = F.scaled_dot_product_attention(of_query, of_key, moved, attn_mask=None if mask is None else mask[of])
    out = out.clone() if out.requires_grad else out  # the output is kept for the backward pass as it is
    out[to] += from_source
    return out


def _record(query: Tensor, key: Tensor, mask: Tensor | None, control: StepControl) -> None:
    """Add up the probabilities of the chosen words, one small layer at a time."""
    # Fused attention does not give its probabilities away. At the few small layers that are recorded, forming them is
    # cheaper than a second fused call with one-hot values. Both branches count in the conditional half alone: what
    # words attend to without text says nothing.
    assert control.words is not None and control.maps is not None
    count, edits_start = query.shape[0], query.shape[0] - len(control)
    rows = _source_rows(control, edits_start)
    if isinstance(rows, slice):
        rows = slice(rows.start, count)
    else:
        rows = torch.cat([rows, torch.arange(edits_start, count, device=query.device)])
    scores = query[rows] @ key[rows].transpose(-1, -2)
    # A softmax in half precision loses the small probabilities that maps of rare words consist of.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * query.shape[-1] ** -0.5
    mean = (scores if mask is None else scores + mask[rows]).softmax(-1).mean(dim=1)
    control.maps.add((mean @ control.words.transpose(1, 2).to(mean.dtype)).transpose(1, 2))


class ControlledProcessor:
    """An attention processor of diffusers that applies a `StepControl`; without one it does what the usual one does."""

    def __init__(self, layer: int) -> None:
        """Make the processor of a layer by its number: how many layers of its kind are called before it."""
        self.layer = layer
        self.num_calls = 0

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: StepControl | None = None,
    ) -> Tensor:
        """Attend; `control` comes from the `cross_attention_kwargs` of the UNet call."""
        if control is not None and not torch.compiler.is_compiling():  # each count would be compiled anew
            self.num_calls += 1
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, context_length, _ = context.shape
        to_q, to_k, to_v, (to_out, dropout) = attn.to_q, attn.to_k, attn.to_v, cast(nn.ModuleList, attn.to_out)
        assert to_k is not None and to_v is not None
        is_self = encoder_hidden_states is None
        taken = _taken(control, hidden_states, self.layer) if control is not None and is_self else _SelfTaken()
        query, key, value = (
            _project(layer, x, rows).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x, rows in zip((to_q, to_k, to_v), (hidden_states, context, context), taken, strict=True)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        mask = attn.prepare_attention_mask(attention_mask, context_length, batch)  # pyright: ignore[reportArgumentType]
        mask = None if mask is None else mask.view(batch, attn.heads, -1, mask.shape[-1])
        if control is not None and not is_self:
            out = _cross_attention(query, key, value, mask, control)
        elif control is not None and taken.value is not None and control.follows_regions is not None:
            out = _attention_by_region(query, key, value, control, self.layer)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return dropout(to_out(out.transpose(1, 2).flatten(2))) / attn.rescale_output_factor


def attention_layers(unet: nn.Module) -> list[Attention]:
    """Return all attention layers in the order of their calls (down, middle, up), found by type."""
    # diffusers registers the middle block last, but calls it before the up blocks.
    blocks = [getattr(unet, name, None) for name in ("down_blocks", "mid_block", "up_blocks")]
    parts = [block for block in blocks if block is not None] or [unet]
    layers = [module for part in parts for module in part.modules() if isinstance(module, Attention)]
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


class _Hooks(NamedTuple):
    names: tuple[str, ...]
    layers: list[Attention]
    processors: list[ControlledProcessor]


# Weak, so that a UNet which nobody uses any more is freed with its processors.
_HOOKS: WeakKeyDictionary[nn.Module, _Hooks] = WeakKeyDictionary()


def _hooks_of(unet: nn.Module) -> _Hooks:
    """Return the hooks of a UNet, found once and again when a layer was replaced."""
    # The same processor objects each time: a compiled UNet is compiled anew for objects that it has not seen.
    known = _HOOKS.get(unet)
    if known is not None and all(unet.get_submodule(name) is x for name, x in zip(*known[:2], strict=True)):
        return known
    layers = attention_layers(unet)
    names = {module: name for name, module in unet.named_modules()}
    num_called = {True: 0, False: 0}
    processors = []
    for layer in layers:
        processors.append(ControlledProcessor(num_called[layer.is_cross_attention]))
        num_called[layer.is_cross_attention] += 1
    _HOOKS[unet] = _Hooks(tuple(names[layer] for layer in layers), layers, processors)
    return _HOOKS[unet]


def num_self_layers(unet: nn.Module) -> int:
    """Number of a UNet's self-attention layers."""
    return len(_hooks_of(getattr(unet, "_orig_mod", unet)).layers) // 2


@contextlib.contextmanager
def controlled(unet: nn.Module) -> Iterator[None]:
    """Let the UNet take `cross_attention_kwargs={"control": StepControl}` within the context."""
    unet = getattr(unet, "_orig_mod", unet)  # of a compiled module
    _, layers, processors = _hooks_of(unet)
    before: list[Any] = [layer.processor for layer in layers]
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
            processor.num_calls = 0
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    # Hooks that a library's update leaves hanging change nothing and raise nothing, so calls are counted. An error that
    # is on its way out has left some layers uncalled; it is not reached here.
    if len({processor.num_calls for processor in processors}) != 1:
        raise RuntimeError("control reached only some attention layers; were attention processors replaced inside?")


@contextlib.contextmanager
def watched_keys(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, within it, the keys of self-attention layers, "b tokens c", in the order of their calls."""
    layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
    keys: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        keys.append(output)

    handles = [cast(nn.Module, layer.to_k).register_forward_hook(keep) for layer in layers]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()
    if len(keys) != len(layers):
        raise RuntimeError(f"expected the keys of {len(layers)} layers, got {len(keys)}; was the model called once?")
