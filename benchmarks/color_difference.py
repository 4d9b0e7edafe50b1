"""How different two colors look: CIEDE2000, the color difference of CIE 142-2001.

After Sharma, Wu and Dalal 2005, "The CIEDE2000 color-difference formula"; a test holds it to their data.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

__all__ = ["delta_e", "lab_of"]

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
"""From linear sRGB, with the white point of D65."""
_WHITE = np.array([0.95047, 1.0, 1.08883])


def lab_of(srgb: Float[Array, "*some 3"]) -> Float[Array, "*some 3"]:
    """Turn sRGB in [0, 1] into CIELAB."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def delta_e(first: Float[Array, "*some 3"], second: Float[Array, "*some 3"]) -> Float[Array, "*some"]:
    """Return the difference of colors in CIELAB; about 1 can just be seen side by side."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    gray = 1 + 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)))  # near gray, a counts more
    a1, a2 = a1 * gray, a2 * gray
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    has_hue = c1 * c2 != 0
    turn = np.where(has_hue, (h2 - h1 + 180) % 360 - 180, 0.0)
    # Hues that are opposite to each other are turned by +180 degrees.
    turn = np.where(has_hue & (turn == -180), 180.0, turn)
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    around = np.where(np.abs(h1 - h2) > 180, np.where(h1 + h2 < 360, 360, -360), 0)
    mean_h = np.where(has_hue, (h1 + h2 + around) / 2, h1 + h2)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(np.radians(mean_h - 30)) + 0.24 * np.cos(np.radians(2 * mean_h))
    t = t + 0.32 * np.cos(np.radians(3 * mean_h + 6)) - 0.2 * np.cos(np.radians(4 * mean_h - 63))
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    angle = 30 * np.exp(-(((mean_h - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * np.sin(np.radians(2 * angle))
    light, chroma, hue = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return np.sqrt(light**2 + chroma**2 + hue**2 + rotation * chroma * hue)
