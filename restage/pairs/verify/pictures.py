"""What can be told from the pictures of a pair alone: whether they decode, show anything, and differ.

Nothing here knows captions or other pairs; `captions` and `repeats` use what is measured here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from restage.pairs.encoding import array_sha256
from restage.pairs.pictures import load_picture
from restage.pairs.score import PairScores
from restage.records import InputError

__all__ = ["Look", "NotDecodable", "difference_hash", "find_faults", "look_at"]

FLAT_LEVELS = 8
"""A picture whose channels each span at most this many of 255 levels shows one color; JPEG adds a few."""
EQUAL_LEVELS = 0.5
"""Mean absolute difference, in levels of 255, up to which two pictures are the same."""
SCORE_TOLERANCE = 0.004
"""Difference that a share or mean over pixels may have from the stored one, since pictures are rounded to bytes."""
HASH_SIZE = 8
COLOUR_GRID = 2


class NotDecodable(ValueError):
    """A picture of the pair cannot be decoded, or the pictures differ in size."""


class Look(NamedTuple):
    """A decoded pair, and short descriptions of it."""

    source: UInt8[np.ndarray, "height width 3"]
    edited: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width"]
    pixels: int
    """64 bits of a hash of the pixels of both pictures."""
    pixel_sha256: str
    """Hash of both pictures and the mask, as in the sidecar."""
    shapes: tuple[int, int]
    """Difference hashes of the two pictures."""
    colours: UInt8[np.ndarray, " 24"]
    """Mean colors of the quarters of both pictures."""


def difference_hash(grey: Image.Image) -> int:
    """Return 64 bits: where brightness rises from a cell of a coarse grid to the next (dHash, N. Krawetz 2013).

    These are three lines on top of Pillow; the library imagehash would bring PyWavelets and no speed.
    """
    small = np.asarray(grey.resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _quarter_colours(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((COLOUR_GRID, COLOUR_GRID), Image.Resampling.BOX)).reshape(-1)


def look_at(parts: Mapping[str, bytes]) -> Look:
    """Decode the files of a pair.

    Args:
        parts: bytes by name, `source.png`, `edited.png`, `mask.png`.

    Raises:
        NotDecodable: one is missing or cannot be decoded, or their sizes differ.
    """
    arrays = []
    for name, mode in (("source.png", "RGB"), ("edited.png", "RGB"), ("mask.png", "L")):
        try:
            arrays.append(np.asarray(load_picture(parts[name], name, mode)))
        except KeyError:
            raise NotDecodable(f"{name} is missing") from None
        except InputError as error:
            raise NotDecodable(str(error)) from None
    source, edited, mask = arrays
    if source.shape != edited.shape or mask.shape != source.shape[:2]:
        sizes = ", ".join("x".join(map(str, array.shape[1::-1])) for array in arrays)
        raise NotDecodable(f"source, edited picture and mask must have one size, got {sizes}")
    images = [Image.fromarray(array) for array in (source, edited)]
    digest = hashlib.blake2b(str(source.shape).encode() + source.tobytes() + edited.tobytes(), digest_size=8)
    first, second = (difference_hash(image.convert("L")) for image in images)
    return Look(
        source=source,
        edited=edited,
        mask=mask,
        pixels=int.from_bytes(digest.digest(), "big"),
        pixel_sha256=array_sha256(source, edited, (mask > 127).astype(np.uint8)),
        shapes=(first, second),
        colours=np.concatenate([_quarter_colours(image) for image in images]),
    )


def _is_flat(picture: np.ndarray) -> bool:
    return bool((np.ptp(picture.reshape(-1, 3), axis=0) <= FLAT_LEVELS).all())


def find_faults(look: Look, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield reason and detail of what is wrong with a pair, by its pictures and the numbers stored of them."""
    for name, picture in (("source", look.source), ("edited", look.edited)):
        if _is_flat(picture):
            is_black = int(picture.max()) <= FLAT_LEVELS
            detail = f"{name} picture: every pixel is {tuple(int(level) for level in picture[0, 0])}"
            yield ("black" if is_black else "constant"), detail
    change = np.abs(look.source.astype(np.int16) - look.edited.astype(np.int16)).mean()
    if change <= EQUAL_LEVELS:
        yield "identical", f"the pictures differ by {change:.2f} of 255 levels on average"
    yield from _score_faults(row, {"change": float(change) / 255, "mask_share": float((look.mask > 127).mean())})


def _score_faults(row: Mapping[str, Any], measured: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for name in PairScores._fields:
        value = row.get(name)
        if value is not None and not math.isfinite(value) and not row.get("unscored"):
            yield "not finite", f"{name} is {value} in an accepted pair"
    for name, value in measured.items():
        stored = row.get(name)
        if stored is not None and math.isfinite(stored) and abs(stored - value) > SCORE_TOLERANCE:
            yield "wrong scores", f"{name} is stored as {stored:.4f}, the pictures have {value:.4f}"
