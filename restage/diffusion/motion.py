"""Temporal attention for a UNet of pictures: a folder of its own, in the shape of diffusers' `MotionAdapter`.

Each pixel attends to itself in the other frames, behind each pair of residual block and attention, as AnimateDiff does
(Guo et al. 2023, arXiv 2307.04725). At the start of its training it changes nothing. Adapters for Stable Diffusion 1.5
load as well. Trained by `restage miniature train motion`; used by `restage generate --frames` and clip methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import MotionAdapter
from torch import nn

from restage.diffusion.loading import load_model
from restage.records import InputError

__all__ = ["build_motion", "load_motion", "max_frames", "moving"]

MAX_FRAMES = 32


def _places(unet: Any, motion: MotionAdapter) -> list[tuple[nn.Module, nn.Module]]:
    """Each module of the UNet that temporal attention stands behind, and that attention, in the order of calls."""
    parts = [*zip(unet.down_blocks, motion.down_blocks, strict=True)]
    if motion.mid_block is not None:
        parts.append((unet.mid_block, motion.mid_block))
    parts += zip(unet.up_blocks, motion.up_blocks, strict=True)
    found = []
    for block, added in parts:
        # Blocks without attention have theirs behind the residual blocks.
        modules = list(getattr(block, "attentions", None) or block.resnets)
        layers: Any = added.motion_modules
        if len(modules) != len(layers):
            raise ValueError(f"{len(layers)} layers of motion for {len(modules)} of the UNet")
        found += zip(modules, layers, strict=True)
    return found


def build_motion(unet: Any, *, num_frames: int = MAX_FRAMES, seed: int = 0) -> MotionAdapter:
    """Build temporal attention for a UNet, at each of its resolutions; untrained, it changes nothing."""
    config: Any = unet.config
    widths = tuple(config["block_out_channels"])
    heads = next(count for count in (8, 4, 2, 1) if all(width % count == 0 for width in widths))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        motion = MotionAdapter(
            block_out_channels=widths,
            motion_layers_per_block=config["layers_per_block"],
            motion_num_attention_heads=heads,
            motion_norm_num_groups=config["norm_num_groups"],
            motion_max_seq_length=num_frames,
        )
    for _, layer in _places(unet, motion):
        output: Any = layer.proj_out
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
    return motion


def load_motion(folder: Path, unet: Any, device: str | torch.device = "cpu") -> MotionAdapter:
    """Load temporal attention, and see that it belongs to a UNet of this shape.

    Raises:
        InputError: as `load_model`, or it belongs to another UNet.
    """
    motion = load_model(MotionAdapter, folder)
    found, expected = list(motion.config["block_out_channels"]), list(unet.config["block_out_channels"])
    try:
        is_right = found == expected and bool(_places(unet, motion)) and motion.conv_in is None
    except ValueError:
        is_right = False
    if not is_right:
        raise InputError(f"{folder} belongs to a UNet of other blocks or widths ({found}, not {expected})")
    return motion.to(device).eval().requires_grad_(False)


def max_frames(motion: MotionAdapter) -> int:
    """Frames at once that it can tell apart."""
    config: Any = motion.config
    return int(config["motion_max_seq_length"])


@contextlib.contextmanager
def moving(unet: Any, motion: MotionAdapter, num_frames: int) -> Iterator[None]:
    """Within it, each call of the UNet is of whole clips: all frames of each together, in their order, times variants.

    Raises:
        InputError: the clip has more frames than the adapter can tell apart.
    """
    if not 1 <= num_frames <= max_frames(motion):
        raise InputError(f"expected 1 to {max_frames(motion)} frames at once, got {num_frames}")
    places = _places(unet, motion)
    num_calls = [0] * len(places)

    def behind(number: int, layer: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            num_calls[number] += 1
            if not isinstance(output, tuple):  # residual blocks return states alone
                return layer(output, num_frames=num_frames)
            return (layer(output[0], num_frames=num_frames), *output[1:])

        return hook

    handles = [module.register_forward_hook(behind(number, layer)) for number, (module, layer) in enumerate(places)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(set(num_calls)) != 1:
        raise RuntimeError("temporal attention reached only some layers of the UNet; were its blocks replaced inside?")
