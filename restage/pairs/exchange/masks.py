"""What the masks of a data set mean: which color, or which transparency, marks the region that was edited.

Data sets differ: white regions, black ones, and holes in a copy of the picture (MagicBrush). Read the wrong way, a mask
teaches the opposite of what it shows, so the meaning is recognized by where the pictures differ, or has to be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageOps

from restage.pairs.pictures import upright_picture
from restage.records import InputError

__all__ = ["MaskIs", "MaskLayers", "MaskVotes", "decode_mask"]

MaskIs = Literal["auto", "white", "black", "transparent", "opaque", "none"]
OPPOSITES = {"white": "black", "transparent": "opaque"}
MIN_CONTRAST = 0.1
"""Contrast, in [-1, 1], of the change inside and outside of the regions below which no meaning is recognized."""
COVERS_NOTHING, COVERS_ALL = 0.001, 0.999
"""Shares of the picture up to which a mask covers nothing, and at which it covers everything."""


class MaskLayers(NamedTuple):
    """A decoded mask."""

    levels: UInt8[np.ndarray, "height width"]
    """The brightest channel, so that colored regions count as white."""
    alpha: UInt8[np.ndarray, "height width"] | None
    """Opacity; None if it is the same everywhere."""

    def region(self, meaning: str) -> Bool[np.ndarray, "height width"]:
        """Return where the mask says that the picture was edited."""
        if meaning in ("transparent", "opaque"):
            alpha = np.full_like(self.levels, 255) if self.alpha is None else self.alpha
            return alpha < 128 if meaning == "transparent" else alpha >= 128
        return self.levels < 128 if meaning == "black" else self.levels >= 128


def decode_mask(content: bytes, size: int | None) -> MaskLayers:
    """Decode a mask, cropped and scaled like its pictures.

    Raises:
        InputError: it cannot be decoded.
    """
    image = upright_picture(content, "the mask", "RGBA")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.NEAREST)
    array = np.asarray(image)
    levels, alpha = array[..., :3].max(axis=2), array[..., 3]
    if levels.max(initial=0) <= 1:  # labels 0 and 1
        levels = levels * np.uint8(255)
    return MaskLayers(levels, None if (alpha == alpha.flat[0]).all() else alpha)


@dataclass
class MaskVotes:
    """Collects what pairs say about the meaning of their masks, separately for those with and without transparency."""

    contrasts: dict[str, list[float]]

    def add(self, layers: MaskLayers, change: Float32[np.ndarray, "height width"]) -> None:
        """Count a pair whose pictures differ by `change`; masks that cover nothing or everything say nothing."""
        meaning = "white" if layers.alpha is None else "transparent"
        region = layers.region(meaning)
        if COVERS_NOTHING < region.mean() < COVERS_ALL:
            inside, outside = float(change[region].mean()), float(change[~region].mean())
            self.contrasts.setdefault(meaning, []).append((inside - outside) / max(inside + outside, 1e-9))

    def meanings(self) -> dict[str, str]:
        """Return what the masks mean, by whether they have transparency.

        Raises:
            InputError: the pictures change as much inside as outside of the regions.
        """
        found = {}
        for meaning, contrasts in self.contrasts.items():
            contrast = float(np.mean(contrasts))
            if abs(contrast) < MIN_CONTRAST:
                raise InputError(
                    f"the masks do not show what they mean: the pictures change as much inside as outside of what is "
                    f"{meaning}; name the edited region: --mask-is white, black, transparent or opaque, or none"
                )
            found[meaning] = meaning if contrast > 0 else OPPOSITES[meaning]
        return found


def meaning_of(layers: MaskLayers, meanings: Mapping[str, str]) -> str:
    """Return what a mask means, by the meanings that were recognized; without any, white or transparent."""
    own = "white" if layers.alpha is None else "transparent"
    return meanings.get(own, own)


def refuse_useless(shares: Iterable[float], mask_is: str) -> None:
    """Refuse masks that cover nothing, or everything, in all pairs.

    Raises:
        InputError: they do.
    """
    found = np.array(list(shares))
    for what, is_so in (("nothing", found <= COVERS_NOTHING), ("everything", found >= COVERS_ALL)):
        if len(found) and is_so.all():
            raise InputError(
                f"the masks cover {what} in all {len(found)} pairs that have one (read as {mask_is}); say what marks "
                "the edited region: --mask-is white, black, transparent or opaque; or go without masks: --mask-is none"
            )
