"""LPIPS where its weights cannot be had: nerfstudio's models build it at start, which downloads 230 MB of AlexNet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NotScored", "lpips_or_not_scored"]


class NotScored(nn.Module):
    """Stands where a metric would stand and says NaN."""

    def forward(self, *pictures: Tensor) -> Tensor:
        """NaN, whatever the pictures are."""
        return torch.tensor(torch.nan)


@contextlib.contextmanager
def lpips_or_not_scored() -> Iterator[None]:
    """Within it, a model that builds LPIPS gets a stand-in if the weights are neither here nor can be downloaded.

    Everything else of the model works without it; the metric then reads NaN, and a line on the screen says why.
    """
    from torchmetrics.image import lpip  # pyright: ignore[reportMissingImports]

    original = lpip.LearnedPerceptualImagePatchSimilarity

    def build(*args: Any, **options: Any) -> nn.Module:
        try:
            return original(*args, **options)
        except (OSError, RuntimeError) as error:
            print(f"LPIPS is not scored, since its weights could not be loaded: {error}")
            return NotScored()

    lpip.LearnedPerceptualImagePatchSimilarity = build  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original
