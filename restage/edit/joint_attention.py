"""Self-attention across views: key views attend to each other, other views take over what the key views found.

A context manager for the UNet of an edit model; `ModelEditor.edit` uses it for a `ViewBatch` with `sharing`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.edit.sharing import ViewSharing, near_epipolar_lines

__all__ = ["share_attention"]


@dataclass
class _Plan:
    """What a call of the UNet shares: the roles of the views at this denoising step."""

    sharing: ViewSharing
    step: int = -1
    keys: list[int] = field(default_factory=list)
    _near: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def begin_step(self) -> None:
        self.step += 1
        self.keys = self.sharing.keys_at(self.step)

    def near(self, view: int, key: int, num_tokens: int) -> Bool[Tensor, "tokens tokens"]:
        """Which tokens of a key view lie near the epipolar line of each token of another view."""
        if (view, key, num_tokens) not in self._near:
            cameras = self.sharing.cameras
            height = round(math.sqrt(num_tokens * cameras.height / cameras.width))
            pair = cameras[[view, key]].to_size(num_tokens // height, height)
            self._near[view, key, num_tokens] = near_epipolar_lines(pair, reach=self.sharing.epipolar_reach)
        return self._near[view, key, num_tokens]


class _SharingProcessor:
    """Takes the place of a self-attention layer's processor; a batch is variants of the guidance x views."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.num_calls = 0

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        self.num_calls += 1
        to_q, to_k, to_v, (to_out, dropout) = attn.to_q, attn.to_k, attn.to_v, cast(nn.ModuleList, attn.to_out)
        assert to_k is not None and to_v is not None
        num_views = len(self.plan.sharing.cameras)
        states = hidden_states.unflatten(0, (-1, num_views))
        keys = self.plan.keys
        of_keys = states[:, keys].flatten(1, 2)  # all tokens of all key views are one sequence
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (to_q(of_keys), to_k(of_keys), to_v(of_keys))
        )
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        found = found.unflatten(1, (len(keys), -1))
        # Other views take over outputs rather than attend: it is what makes them agree, and it costs no attention.
        out = found.new_empty(*states.shape[:-1], found.shape[-1])
        out[:, keys] = found
        for view in range(num_views):
            if view not in keys:
                out[:, view] = self._transfer(states, found, view)
        return dropout(to_out(out.flatten(0, 1))) / attn.rescale_output_factor

    def _transfer(self, states: Tensor, found: Tensor, view: int) -> Tensor:
        """Blend, for each token of a view, the outputs of its best matches in the two nearest key views."""
        plan, total = self.plan, 0.0
        for weight, number in plan.sharing.nearest_keys(view, plan.keys):
            key = plan.keys[number]
            near = plan.near(view, key, states.shape[2]).to(states.device)
            match = best_matches(states[:, view], states[:, key], near)
            taken = found[:, number].gather(1, match[:, :, None].expand(-1, -1, found.shape[-1]))
            total = total + weight * taken
        assert isinstance(total, Tensor)
        return total


def best_matches(
    features: Float[Tensor, "b n c"], others: Float[Tensor, "b m c"], allowed: Bool[Tensor, "n m"]
) -> Tensor:
    """Index of the most similar (by cosine) of the others for each feature, among the allowed; of all if none is."""
    similarity = functional.normalize(features.float(), dim=2) @ functional.normalize(others.float(), dim=2).mT
    # A token whose line misses the other view would have nothing to take; the best match anywhere is better than that.
    is_free = allowed | ~allowed.any(dim=1, keepdim=True)
    return similarity.masked_fill(~is_free, -math.inf).argmax(dim=2)


@contextlib.contextmanager
def share_attention(unet: nn.Module, sharing: ViewSharing) -> Iterator[None]:
    """Within it, each call of the UNet is one denoising step of all views together, in their order, times variants."""
    layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
    plan = _Plan(sharing)
    processors = [_SharingProcessor(plan) for _ in layers]
    before: list[Any] = [layer.processor for layer in layers]
    # Counted by calls of the UNet: a layer cannot know which denoising step it is in.
    hook = unet.register_forward_pre_hook(lambda module, inputs: plan.begin_step())
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
        yield
    finally:
        hook.remove()
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    if len({processor.num_calls for processor in processors}) != 1:
        raise RuntimeError("sharing reached only some self-attention layers; were processors replaced inside?")
