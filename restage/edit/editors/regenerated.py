"""Views painted anew from the noise that they come from, held by the depth of the scene and by reference views.

The 2D half of GaussCtrl (Wu et al. 2024, arXiv 2403.08733): DDIM inversion under the caption of the scene as it is,
then denoising under the caption of the edited one, with the splats' own depth through a control branch, and with
attention to a few reference views. `TextToImageEditor` calls it for batches with a `ViewLayout`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.diffusion.backbone import Backbone, TextCondition
from restage.diffusion.branches import near_of
from restage.diffusion.conditions import invert_depth, near_depth
from restage.diffusion.sampling import denoise, guided, invert_latents
from restage.edit.editors.interface import ViewBatch
from restage.edit.sharing import ViewLayout
from restage.records import InputError

__all__ = ["VIEWS_AT_ONCE", "attend_to_references", "regenerate"]

VIEWS_AT_ONCE = 8
"""Views in the model at the same time, besides the reference views."""


class _ReferenceProcessor:
    """Mixes a view's own self attention with the mean of its attention to each reference view.

    `out = s Attn(Q, K, V) + (1 - s) mean_r Attn(Q, K_r, V_r)`; a batch is halves of the guidance x views.
    """

    def __init__(self, num_views: int, num_references: int, own_share: float) -> None:
        self.num_views, self.num_references, self.own_share = num_views, num_references, own_share
        self.num_calls = 0

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        self.num_calls += 1
        to_q, to_k, to_v, (to_out, dropout) = attn.to_q, attn.to_k, attn.to_v, cast(nn.ModuleList, attn.to_out)
        assert to_k is not None and to_v is not None
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (to_q, to_k, to_v)
        )
        out = self.own_share * functional.scaled_dot_product_attention(query, key, value)
        for reference in range(self.num_references):
            # The reference views come first in each half.
            of = [
                x.unflatten(0, (-1, self.num_views))[:, reference : reference + 1]
                .expand(-1, self.num_views, -1, -1, -1)
                .flatten(0, 1)
                for x in (key, value)
            ]
            share = (1 - self.own_share) / self.num_references
            out = out + share * functional.scaled_dot_product_attention(query, *of)
        return dropout(to_out(out.transpose(1, 2).flatten(2))) / attn.rescale_output_factor


@contextlib.contextmanager
def attend_to_references(unet: nn.Module, num_views: int, num_references: int, own_share: float) -> Iterator[None]:
    """Within it, self attention looks at the first views of each batch as well; see `_ReferenceProcessor`."""
    layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
    processors = [_ReferenceProcessor(num_views, num_references, own_share) for _ in layers]
    before: list[Any] = [layer.processor for layer in layers]
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    if len({processor.num_calls for processor in processors}) != 1:
        raise RuntimeError("references reached only some self-attention layers; were processors replaced inside?")


def regenerate(
    backbone: Backbone,
    batch: ViewBatch,
    layout: ViewLayout,
    *,
    before: TextCondition,
    after: TextCondition,
    guidance: float,
    num_steps: int,
) -> Float[Tensor, "batch c h w"]:
    """Return the latents of the edited views; `before` and `after` are one caption each.

    Where the backbone has no control branch, depth holds nothing, and the noise and the reference views do the rest.
    """
    takes_depth = bool(backbone.branches) and all("depth" in branch.conditions for branch in backbone.branches)
    if backbone.branches and not takes_depth:
        raise InputError("views of a scene have depth alone; choose control branches that take depth")
    near = near_of(backbone.branches) or near_depth(layout.depths)
    below, right = (-side % backbone.pixels_per_latent for side in batch.views.shape[-2:])
    # As pictures are continued where their sides are no multiples of what a latent stands for.
    depths = functional.pad(layout.depths[:, None].cpu(), (0, right, 0, below), mode="replicate")[:, 0]
    conditions = [{"depth": invert_depth(depth, near)} for depth in depths]
    height, width = depths.shape[1:]
    references = list(layout.references)
    others = [place for place in range(len(batch.views)) if place not in references]
    first = round((1 - batch.noise_level) * num_steps)
    timesteps = backbone.schedule.timesteps(num_steps)[min(first, num_steps - 1) :]
    found: dict[int, Tensor] = {}
    trajectories: dict[int, Tensor] = {}
    chunks = [others[start : start + VIEWS_AT_ONCE] for start in range(0, len(others), VIEWS_AT_ONCE)] or [[]]
    for chunk in chunks:
        places = [*references, *chunk]
        model = backbone
        if takes_depth:
            model = backbone.steered([conditions[place] for place in places], (height, width))
        new = [place for place in places if place not in trajectories]
        clean = backbone.encode_images(batch.originals[new])
        inverting = model.with_rows(torch.tensor([places.index(place) for place in new]))
        levels = invert_latents(inverting, clean, before.expand(len(new)), num_steps=num_steps, num_iterations=1)
        start = levels[num_steps - len(timesteps)]
        trajectories |= {place: start[row] for row, place in enumerate(new)}
        latents = torch.stack([trajectories[place] for place in places])
        scales = torch.full((len(places),), guidance)
        predict = guided(model, after.expand(len(places)), backbone.encode_prompts([""]), scales)
        with attend_to_references(model.unet, len(places), len(references), layout.own_share):
            for state in denoise(model.schedule, latents, predict=predict, timesteps=timesteps, solver="ddim"):
                latents = state.latents
        found |= dict(zip(places, latents, strict=True))
    return torch.stack([found[place] for place in range(len(batch.views))])
