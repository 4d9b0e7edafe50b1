"""What an edit changed, as pictures: for the page and for the viewer."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

__all__ = ["FOUND_RGB", "MISSED_RGB", "SPILLED_RGB", "change_map", "mask_overlay"]

FOUND_RGB, SPILLED_RGB, MISSED_RGB = (38, 166, 142), (240, 138, 36), (122, 92, 214)
"""Colors of a mask: changed as it should, changed though it should not, unchanged though it should."""


def change_map(
    first_uint8: UInt8[np.ndarray, "height width 3"], second_uint8: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "height width"]:
    """Absolute difference of two pictures, mean over channels, in [0, 1]."""
    return np.abs(first_uint8.astype(np.float32) - second_uint8.astype(np.float32)).mean(axis=-1) / 255


def mask_overlay(
    picture_uint8: UInt8[np.ndarray, "height width 3"],
    changed: Bool[np.ndarray, "height width"],
    should_change: Bool[np.ndarray, "height width"] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay over a pale gray picture what changed; where truth is known, whether it should."""
    gray = picture_uint8.astype(np.float32).mean(axis=-1, keepdims=True)
    canvas = np.repeat(40 + 0.75 * gray, 3, axis=-1)
    expected = changed if should_change is None else should_change
    regions = ((changed & expected, FOUND_RGB), (changed & ~expected, SPILLED_RGB), (~changed & expected, MISSED_RGB))
    for region, color in regions:
        canvas[region] = 0.3 * canvas[region] + 0.7 * np.array(color, np.float32)
    return np.round(canvas).astype(np.uint8)
