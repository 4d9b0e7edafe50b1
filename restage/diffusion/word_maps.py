"""Where the words of a caption are attended from: the few maps that control ever holds in memory.

They say what an edit may change (local blend), give each pair its mask for free, and tell MasaCtrl what is the thing
and what is around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["BlendControl", "WordMaps", "blend_masks"]


@dataclass(frozen=True, eq=False)
class BlendControl:
    """Which words say what may change (local blend): token axes are the padded prompt; 1 for the words, else 0."""

    source_words: Float[Tensor, "pairs tokens"]
    edit_words: Float[Tensor, "pairs tokens"]
    source_kept: Float[Tensor, "pairs tokens"]  # words whose place is never to change, though the others cover it
    edit_kept: Float[Tensor, "pairs tokens"]
    start: Float[Tensor, " pairs"]
    """Share of the steps after which latents are blended; 1 = never, the words then only make the pair's mask."""
    threshold: Float[Tensor, " pairs"]  # share of its maximum above which a word map counts
    kept_threshold: Float[Tensor, " pairs"]  # the same for the words that are kept

    @property
    def has_words(self) -> Bool[Tensor, " pairs"]:
        """Which pairs have words that say what may change."""
        return (self.source_words.sum(-1) + self.edit_words.sum(-1)) > 0

    @property
    def has_kept(self) -> Bool[Tensor, " pairs"]:
        """Which pairs have words to keep."""
        return (self.source_kept.sum(-1) + self.edit_kept.sum(-1)) > 0

    def words(self) -> Float[Tensor, "branches_pairs 2 tokens"]:
        """What to record, [source branch x pairs | edit branch x pairs]: words that change, words that are kept."""
        source = torch.stack([self.source_words, self.source_kept], dim=1)
        return torch.cat([source, torch.stack([self.edit_words, self.edit_kept], dim=1)])


class WordMaps:
    """Running mean, over heads, layers and steps, of where the chosen words of each branch attend in the picture.

    These are the branch's own maps: where control replaces the attention of the edit branch, what it would have
    attended to is recorded, since what replaces it is in the source branch's map already. (Prompt-to-Prompt's public
    code writes the replaced probabilities back in place and so records those.)
    """

    def __init__(self, size: int, num_pairs: int, device: torch.device | str = "cpu") -> None:
        """Record at cross-attention layers whose queries are `size` x `size`, for both branches of so many pairs."""
        self.size = size
        self._sum = torch.zeros(2 * num_pairs, 2, size * size, device=device)
        self._sum_of_step = torch.zeros_like(self._sum)
        # A tensor, not a number: a compiled UNet would be compiled anew for each value of a number.
        self._count = torch.zeros((), device=device)

    @property
    def has_any(self) -> bool:
        """Whether anything was recorded."""
        return bool(self._count > 0)

    def begin_step(self) -> None:
        """Forget what was recorded for `regions`, which come from the current step alone."""
        self._sum_of_step.zero_()

    def add(self, maps: Float[Tensor, "items 2 pixels"]) -> None:
        """Add one layer's maps (mean over its heads), in place."""
        self._sum += maps.detach().float()
        self._sum_of_step += maps.detach().float()
        self._count += 1

    def mean(self) -> Float[Tensor, "items 2 size size"]:
        """Mean maps, [source branch x pairs | edit branch x pairs]: words that may change, words that are kept."""
        if not self.has_any:
            raise RuntimeError(f"no cross-attention layer has queries of {self.size} x {self.size}")
        return (self._sum / self._count).unflatten(-1, (self.size, self.size))

    def regions(
        self, threshold: Float[Tensor, " pairs"], is_used: Bool[Tensor, " pairs"]
    ) -> tuple[Bool[Tensor, "pairs size size"], Bool[Tensor, "pairs size size"]]:
        """Where the words that may change are in the source and in the edit.

        Maps are scaled to [0, 1] and cut at a threshold. As in MasaCtrl's public code they are those of this step, of
        the layers that have been called so far.

        A pair that does not use them, or whose region in either branch is empty or everything, has both everywhere:
        attention restricted to it is then unrestricted. So it is before the first map of a step.
        """
        maps = self._sum_of_step[:, 0]
        low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
        both = (maps - low) / (high - low).clamp(min=1e-12) >= threshold.to(maps.device).repeat(2)[:, None]
        source, edit = both.chunk(2)
        some = source.any(1) & edit.any(1) & ~source.all(1) & ~edit.all(1) & is_used.to(maps.device)
        return tuple((x | ~some[:, None]).unflatten(1, (self.size, self.size)) for x in (source, edit))  # pyright: ignore


def blend_masks(
    maps: Float[Tensor, "items 2 map_size map_size"], blend: BlendControl, *, size: tuple[int, int]
) -> Float[Tensor, "pairs height width"]:
    """Where each pair may change, 0 or 1, from the word maps of its source and edit branch (their union).

    Prompt-to-Prompt's recipe: 3x3 max-pool, resize to `size`, divide by the maximum, threshold; then without the words
    that are kept, found in the same way without the pooling. A pair without words may change everywhere.
    """

    def found(maps: Tensor, threshold: Tensor) -> Tensor:
        resized = F.interpolate(maps[:, None].float(), size, mode="bilinear")[:, 0]
        peak = resized.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        source, edit = (resized / peak > threshold.to(maps.device).repeat(2)[:, None, None]).chunk(2)
        return source | edit

    # Pooled, words cover their thing's edges; words that are kept must not grow into the thing next to them.
    pooled = F.max_pool2d(maps[:, :1].float(), kernel_size=3, stride=1, padding=1)[:, 0]
    free = ~blend.has_words.to(maps.device)[:, None, None]
    kept = found(maps[:, 1], blend.kept_threshold) & blend.has_kept.to(maps.device)[:, None, None]
    return ((found(pooled, blend.threshold) | free) & ~kept).float()
