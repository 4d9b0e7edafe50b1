"""Which views of a joint edit are key views at a denoising step, and which of them another view takes over from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from restage.records import InputError, derive_seed
from restage.scenes.cameras import Cameras

__all__ = ["ViewSharing"]


@dataclass(frozen=True)
class ViewSharing:
    """Views in groups of neighbours; at each step one view of each group, drawn anew, is a key view."""

    cameras: Cameras
    """Of the views, in the order of the batch."""
    group_size: int
    """Views for each key view."""
    seed: int
    epipolar_reach: float = 1.0
    """Tokens of a key view farther from the epipolar line than this, in tokens, are no match."""

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.epipolar_reach <= 0:
            raise InputError(
                f"expected group_size >= 1 and epipolar_reach > 0, got {self.group_size} and {self.epipolar_reach}"
            )

    def keys_at(self, step: int) -> list[int]:
        """Key views of a step, ascending: one of each group of views that follow each other."""
        generator = np.random.default_rng(derive_seed(self.seed, "key views", step))
        starts = range(0, len(self.cameras), self.group_size)
        ends = [min(start + self.group_size, len(self.cameras)) for start in starts]
        return [int(generator.integers(start, end)) for start, end in zip(starts, ends, strict=True)]

    def nearest_keys(self, view: int, keys: Sequence[int]) -> list[tuple[float, int]]:
        """Weight and place among `keys` of the two nearest by position; the nearer weighs more, both add up to 1."""
        positions = self.cameras.positions
        distances = [float((positions[key] - positions[view]).norm()) for key in keys]
        first, *rest = sorted(range(len(keys)), key=distances.__getitem__)[:2]
        if not rest:
            return [(1.0, first)]
        total = distances[first] + distances[rest[0]]
        share = distances[rest[0]] / total if total > 0 else 1.0
        return [(share, first), (1 - share, rest[0])]
