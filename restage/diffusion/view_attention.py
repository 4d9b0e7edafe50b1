"""An add-on for a UNet that makes several views of one scene at once: it is told the cameras, and views attend to all.

A folder of its own (`config.json` and weights) that is attached to the UNet it was trained with, whose weights stay. At
the start of its training it changes nothing. Trained by `restage miniature train views`, used by the generator `views`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.diffusion.loading import load_model
from restage.records import InputError

__all__ = ["NUM_RAY_CHANNELS", "ViewAttention", "build_view_attention", "load_view_attention", "viewing"]

NUM_RAY_CHANNELS = 6
"""Of a pixel's line of sight in Plücker coordinates: its direction, and its moment about the middle of the scene."""
NUM_OCTAVES = 3
MAX_FULL_SIDE = 8
"""Layers of more tokens a side than this attend to means of squares of four: on the miniature's UNet a fourth of what
attention over eight views costs, which was more than a third of a training step."""


class _Layer(nn.Module):
    """What is added to a self-attention layer: attention of every token to those of all views."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Linear(NUM_RAY_CHANNELS * (1 + 2 * NUM_OCTAVES), width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        for zero in (self.place.weight, self.place.bias, self.to_out.weight, self.to_out.bias):
            nn.init.zeros_(zero)

    def forward(
        self, tokens: Float[Tensor, "b n c"], places: Float[Tensor, "scenes views n p"]
    ) -> Float[Tensor, "b n c"]:
        """What the views tell each other; a batch is variants of the guidance x scenes x views."""
        scenes, views, length = places.shape[:3]
        plain = tokens.unflatten(0, (-1, scenes, views))
        placed = plain + self.place(places)
        query, key, value = (
            layer(x.flatten(2, 3).flatten(0, 1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.to_q, placed), (self.to_k, _pooled(placed)), (self.to_v, _pooled(plain)))
        )
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.to_out(found).unflatten(1, (views, length)).flatten(0, 1)


def _pooled(tokens: Float[Tensor, "... n c"]) -> Float[Tensor, "... m c"]:
    side = math.isqrt(tokens.shape[-2])
    if side <= MAX_FULL_SIDE or side % 2:
        return tokens
    return tokens.unflatten(-2, (side // 2, 2, side // 2, 2)).mean(dim=(-4, -2)).flatten(-3, -2)


class ViewAttention(ModelMixin, ConfigMixin):
    """A layer beside each self-attention layer of the UNet, and a convolution of the rays beside its first one."""

    @register_to_config
    def __init__(
        self, widths: list[int], heads: list[int], first_width: int = 96, num_views: int = 8, ray_width: int = 32
    ) -> None:
        """Build it untrained; lists have an item for each self-attention layer, in the order of their calls.

        `num_views` is how many views at once it was trained on.
        """
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, count) for width, count in zip(widths, heads, strict=True))
        self.ray_conv = nn.Conv2d(NUM_RAY_CHANNELS, ray_width, 3, padding=1)
        self.ray_out = nn.Conv2d(ray_width, first_width, 1)
        nn.init.zeros_(self.ray_out.weight)
        nn.init.zeros_(self.ray_out.bias)  # pyright: ignore[reportArgumentType]

    @property
    def num_views(self) -> int:
        """Views at once that it was trained on."""
        config: Any = self.config
        return int(config["num_views"])


def self_layers(unet: nn.Module) -> list[Attention]:
    """The UNet's self-attention layers in the order of their calls."""
    return [layer for layer in attention_layers(unet) if not layer.is_cross_attention]


def build_view_attention(unet: Any, *, num_views: int) -> ViewAttention:
    """Build the add-on of a UNet; queries, keys and values begin as those of the layers that it stands beside."""
    layers = self_layers(unet)
    add_on = ViewAttention(
        widths=[layer.to_q.in_features for layer in layers],
        heads=[layer.heads for layer in layers],
        first_width=unet.conv_in.out_channels,
        num_views=num_views,
    )
    with torch.no_grad():
        for own, layer in zip(add_on.layers, layers, strict=True):
            for name in ("to_q", "to_k", "to_v"):
                getattr(own, name).weight.copy_(getattr(layer, name).weight)
    return add_on


def load_view_attention(folder: Path, unet: Any, device: str | torch.device = "cpu") -> ViewAttention:
    """Load an add-on, and see that it belongs to a UNet of this shape."""
    add_on = load_model(ViewAttention, folder)
    expected = [layer.to_q.in_features for layer in self_layers(unet)]
    if list(add_on.config["widths"]) != expected or add_on.config["first_width"] != unet.conv_in.out_channels:
        raise InputError(f"{folder} belongs to a UNet of other widths ({add_on.config['widths']}, not {expected})")
    return add_on.to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def viewing(unet: Any, add_on: ViewAttention, rays: Float[Tensor, "scenes views r h h"]) -> Iterator[None]:
    """Within it, each call of the UNet is of whole scenes: all views of each together, in their order, times variants.

    `rays` are those of the latents' pixels.
    """
    layers = self_layers(unet)
    if len(layers) != len(add_on.layers):
        raise InputError(f"the add-on has {len(add_on.layers)} layers, the UNet {len(layers)} of self attention")
    places: dict[int, Tensor] = {}
    num_calls = [0] * (len(layers) + 1)

    def add_rays(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        num_calls[-1] += 1
        found = add_on.ray_out(functional.silu(add_on.ray_conv(rays.flatten(0, 1))))
        return output + found.repeat(len(output) // len(found), 1, 1, 1).to(output.dtype)

    def add_views(number: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> Tensor:
            num_calls[number] += 1
            tokens = inputs[0] if inputs else options["hidden_states"]
            side = math.isqrt(tokens.shape[1])
            if side not in places:
                places[side] = _places(rays, side)
            return output + add_on.layers[number](tokens, places[side]).to(output.dtype)

        return hook

    hooks = [unet.conv_in.register_forward_hook(add_rays)]
    hooks += [layer.register_forward_hook(add_views(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if len(set(num_calls)) != 1:
        raise RuntimeError("the add-on reached only some self-attention layers; were layers replaced inside?")


def _places(rays: Float[Tensor, "scenes views r h h"], side: int) -> Float[Tensor, "scenes views n p"]:
    """Rays of a coarser grid, and waves of several lengths along them, token by token."""
    coarse = functional.adaptive_avg_pool2d(rays.flatten(0, 1), side).unflatten(0, rays.shape[:2])
    coarse = coarse.flatten(3).transpose(2, 3)
    waves = [2.0**octave * math.pi * coarse for octave in range(NUM_OCTAVES)]
    return torch.cat([coarse, *(wave.sin() for wave in waves), *(wave.cos() for wave in waves)], dim=3)
