"""Where the points of a frame are in other frames: estimated optical flow, and pictures looked up along it.

Flow is "2 h w": how far, in pixels to the right and down, what a pixel's center shows has gone by another frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

__all__ = ["ClipFlow", "Traced", "estimate_flow", "look_up"]

MIN_SIDE = 64
"""Smaller frames are enlarged first, since flow is found on patches of 8 pixels over several scales."""
SLACK_PX, SLACK_SHARE = 0.6, 0.1
"""There and back again a point may be off by so much, in pixels and as a share of its way; else it counts as hidden."""

SLACK_COLOR = 0.15
"""Mean difference over channels up to which two pixels may show the same point: light changes, and so do edges."""


class Traced(NamedTuple):
    """Where another frame shows the points of a frame."""

    flow: Float[Tensor, "2 h w"]
    is_seen: Bool[Tensor, "h w"]


@dataclass(frozen=True)
class ClipFlow:
    """Flow between neighboring frames of a clip, both ways; m = n - 1."""

    forward: Float[Tensor, "m 2 h w"]
    """From each frame to the next one."""
    backward: Float[Tensor, "m 2 h w"]
    """From each frame but the first to the one before."""
    frames: Float[Tensor, "n 3 h w"] | None = None
    """What is shown; where flow leads to another color a point counts as hidden. None to look at the flow alone."""

    @cached_property
    def seen_next(self) -> Bool[Tensor, "m h w"]:
        """Whether a point of a frame is seen in the next one."""
        return self._seen(self.forward, self.backward, 0, 1)

    @cached_property
    def seen_before(self) -> Bool[Tensor, "m h w"]:
        """Whether a point of a frame but the first is seen in the one before."""
        return self._seen(self.backward, self.forward, 1, 0)

    def _seen(self, there: Tensor, back: Tensor, start: int, end: int) -> Bool[Tensor, "m h w"]:
        found = []
        for index, pair in enumerate(zip(there, back, strict=True)):
            is_seen = _returns(*pair)
            if self.frames is not None:
                difference = look_up(self.frames[index + end], pair[0]) - self.frames[index + start]
                is_seen &= difference.abs().mean(dim=0) <= SLACK_COLOR
            found.append(is_seen)
        return torch.stack(found) if found else torch.zeros_like(there[:, 0], dtype=torch.bool)

    def trace(self, start: int, end: int) -> Traced:
        """Follow every point of frame `start` to frame `end`, from frame to frame."""
        total = self.forward.new_zeros(self.forward.shape[1:])  # a single frame has no flow
        is_seen = torch.ones_like(total[0], dtype=torch.bool)
        for frame in range(start, end, 1 if end > start else -1):
            flow, seen = (
                (self.forward[frame], self.seen_next[frame])
                if end > start
                else (self.backward[frame - 1], self.seen_before[frame - 1])
            )
            is_seen &= look_up(seen[None].float(), total)[0] > 0.5
            total = total + look_up(flow, total)
        return Traced(total, is_seen & _is_inside(total))


def _is_inside(flow: Float[Tensor, "2 h w"]) -> Bool[Tensor, "h w"]:
    return (_grid(flow).abs() <= 1).all(dim=-1)


def _grid(flow: Float[Tensor, "2 h w"]) -> Float[Tensor, "h w 2"]:
    """Places to look up, as `grid_sample` counts them."""
    height, width = flow.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=flow.device) + 0.5, torch.arange(width, device=flow.device) + 0.5, indexing="ij"
    )
    return torch.stack([2 * (columns + flow[0]) / width - 1, 2 * (rows + flow[1]) / height - 1], dim=-1)


def look_up(image: Float[Tensor, "c h w"], flow: Float[Tensor, "2 h w"], *, mode: str = "bilinear") -> Tensor:
    """What a picture shows where the flow leads from each pixel; at places outside, its border."""
    found = functional.grid_sample(
        image[None], _grid(flow)[None].to(image), mode=mode, padding_mode="border", align_corners=False
    )
    return found[0]


def _returns(there: Float[Tensor, "2 h w"], back: Float[Tensor, "2 h w"]) -> Bool[Tensor, "h w"]:
    """Whether the flow back leads to where a point came from."""
    found = look_up(back, there)
    way = there.norm(dim=0) + found.norm(dim=0)
    return _is_inside(there) & ((there + found).norm(dim=0) <= SLACK_PX + SLACK_SHARE * way)


def estimate_flow(frames: Float[Tensor, "n 3 h w"]) -> ClipFlow:
    """Estimate the flow of a clip by dense inverse search (Kroeger et al. 2016, arXiv 1603.03590)."""
    scale = max(1.0, MIN_SIDE / min(frames.shape[2:]))
    size = [round(side * scale) for side in frames.shape[2:]]
    shown = frames if scale == 1 else functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    pictures = [np.ascontiguousarray(frame) for frame in (shown.mean(dim=1).clamp(0, 1) * 255).byte().cpu().numpy()]
    opencv: Any = cv2  # its stubs do not know all of it
    search = opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_MEDIUM).calc

    def flows(first: list[np.ndarray], second: list[np.ndarray]) -> Tensor:
        found = [torch.from_numpy(search(a, b, None)).permute(2, 0, 1) for a, b in zip(first, second, strict=True)]
        flow = torch.stack(found) if found else torch.zeros(0, 2, *size)
        if scale > 1 and len(flow):
            flow = functional.interpolate(flow, frames.shape[2:], mode="bilinear", align_corners=False) / scale
        return flow.reshape(-1, 2, *frames.shape[2:]).to(frames.device)

    return ClipFlow(flows(pictures[:-1], pictures[1:]), flows(pictures[1:], pictures[:-1]), frames)
