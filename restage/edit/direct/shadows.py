"""The shadow of a thing on the surface that it stands on: found in a painting of that surface, and taken away."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt, median_filter
from torch import Tensor

from restage.edit.direct.surface import Painting, distance_from

__all__ = ["GRAIN", "Shadow", "find_shadow", "light_up", "without_grain"]

MAX_AREA, MAX_SPREAD = 0.3, 0.12
"""A shadow covers no more than the first share of what is seen of the plane; none can be told where the plane, far from
the thing, differs from a plane of light by more than the second."""
CONTACT = (0.2, 0.95)
"""A thing throws no shadow if, up to this share of its size around its foot, the plane is hardly darker than farther
off."""
GRAIN, DARK, MIN_POINTS = 0.25, 0.97, 30
"""What is smaller than the first share of the thing's size is the plane's own pattern; shadows are darker than the
second share of the light, which is fitted to so many points or more."""
NEAR, FAR, LOCAL, NUM_REFITS = 1.8, 4.0, 1.0, 5
"""The light is fitted to what lies between so many sizes from the thing and so many, in so many rounds; where it
differs from a plane, that is what it does within the third around it."""
SOFT, MAX_GAIN, STEP = 0.4, 6.0, 0.001
"""Gains end within a share of the size around a shadow, and are limited. A step to the next point counts as much as so
great a change of brightness."""


class Shadow(NamedTuple):
    """A dark stain on a plane that begins at the thing which stands there."""

    is_dark: Bool[Tensor, "rows columns"]
    light: Float[Tensor, "3 rows columns"]  # colors that the plane would have without it
    share: Float[Tensor, "rows columns"]  # how much of it is to be taken away, from 1 inside to 0 outside
    gains: Float[Tensor, "3 rows columns"]  # factors that take it away; 1 outside


def find_shadow(
    painting: Painting, foot: Bool[Tensor, "rows columns"], others: Bool[Tensor, "rows columns"], *, size: float
) -> Shadow:
    """Find the shadow that a thing throws on the plane, from its foot on, and not those of other things.

    Without it, the plane's colors are taken to change as they do far from the thing where it is not darker: nearby,
    things dim the light from the sky even where they throw no shadow.
    """
    ones = torch.ones_like(painting.colors)
    none = Shadow(torch.zeros_like(foot), ones, torch.zeros(foot.shape), ones)
    away = distance_from(foot) * painting.spacing / size
    # Unseen points get the nearest color.
    row, column = np.asarray(
        distance_transform_edt((~painting.is_seen).numpy(), return_distances=False, return_indices=True)
    )
    smooth = without_grain(painting.colors[:, row, column], GRAIN * size / painting.spacing)
    brightness = smooth.mean(dim=0)
    is_far = painting.is_seen & (away > NEAR) & (distance_from(others) * painting.spacing > SOFT * size)
    is_light = is_far & (away < FAR)
    num_far, limit, light = int(is_light.sum()), DARK, smooth
    if num_far < MIN_POINTS:
        return none
    for _ in range(NUM_REFITS):
        light = _fit_light(smooth, is_light)
        ratio = brightness / light.mean(dim=0).clamp_min(1e-3)
        # A pattern of the plane's own makes it as often brighter as darker; a shadow only makes it darker.
        middle, bright = ratio[is_light].quantile(torch.tensor([0.5, 0.84])).tolist()
        if bright - middle > MAX_SPREAD:  # another material: what is dark before it need not be shadow
            return none
        limit = min(DARK, 1 - 2 * (bright - middle))
        is_light = is_far & (away < FAR) & (ratio > limit)
        if int(is_light.sum()) < max(MIN_POINTS, 0.2 * num_far):  # dark for the most part: no shadow
            return none
    light = light + _local_rest(smooth - light, is_far & (ratio > limit), LOCAL * size / painting.spacing)
    ratio = brightness / light.mean(dim=0).clamp_min(1e-3)
    rim = painting.is_seen & (distance_from(foot | ~painting.is_seen) * painting.spacing < CONTACT[0] * size)
    rim &= away < 1
    if not bool(rim.any()) or float(ratio[rim].mean()) > CONTACT[1]:
        return none
    feet = torch.where(_own(painting, foot), 1, torch.where(others, 2, 0))
    basins = _basins(ratio, feet, ((ratio < limit) & painting.is_seen) | (feet > 0))
    is_dark = basins == 1
    if is_dark.sum() > MAX_AREA * painting.is_seen.sum():  # another material, and no shadow
        return none
    # Shadows end softly, and so does the light: a step would be seen as an edge. It ends at other things' shadows, too.
    is_own = painting.is_seen & (basins <= 1)
    share = (1 - distance_from(is_dark) * painting.spacing / (SOFT * size)).clamp(0, 1) * is_own
    return Shadow(share > 0, light, share, light_up(smooth, light, share))


def light_up(
    smooth: Float[Tensor, "3 rows columns"],
    light: Float[Tensor, "3 rows columns"],
    share: Float[Tensor, "rows columns"],
) -> Float[Tensor, "3 rows columns"]:
    """Factors of at least 1 that bring what is darker than the light a share of the way up to it."""
    return 1 + ((light / smooth.clamp_min(1e-2)).clamp(1, MAX_GAIN) - 1) * share


def without_grain(colors: Float[Tensor, "3 rows columns"], width: float) -> Float[Tensor, "3 rows columns"]:
    """Colors without what is narrower than half a width, in points; edges of larger things stay sharp."""
    size = max(5, round(width))
    return torch.from_numpy(np.stack([median_filter(plane, size=size, mode="nearest") for plane in colors.numpy()]))


def _fit_light(smooth: Float[Tensor, "3 rows columns"], chosen: Bool[Tensor, "rows columns"]) -> Tensor:
    """Colors that change linearly over the plane, as those of the chosen points do; "3 rows columns"."""
    down, across = (torch.linspace(-1, 1, count) for count in chosen.shape)
    basis = torch.stack([torch.ones(chosen.shape), *torch.meshgrid(down, across, indexing="ij")], dim=-1)
    solution = torch.linalg.lstsq(basis[chosen], smooth[:, chosen].T).solution
    return (basis @ solution).permute(2, 0, 1)


def _local_rest(rest: Float[Tensor, "3 rows columns"], known: Bool[Tensor, "rows columns"], sigma: float) -> Tensor:
    """Mean of what is left at known points around each point; fades to 0 where none is near."""

    def blurred(plane: Tensor) -> Tensor:
        return torch.from_numpy(cv2.GaussianBlur(plane.numpy(), (0, 0), sigma))

    weights = blurred(known.float()) + 0.05
    return torch.stack([blurred(plane * known) / weights for plane in rest])


def _own(painting: Painting, foot: Bool[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns"]:
    """What no view shows under a thing, with its foot."""
    _, labels = cv2.connectedComponents((~painting.is_seen | foot).numpy().astype(np.uint8))
    parts = torch.from_numpy(labels)
    return torch.isin(parts, parts[foot].unique())


def _basins(
    heights: Float[Tensor, "rows columns"], feet: Int[Tensor, "rows columns"], inside: Bool[Tensor, "rows columns"]
) -> Int[Tensor, "rows columns"]:
    """Part what lies inside among the feet: the number of the foot from which the way leads least into the darker.

    From its foot on, a shadow is even or fades, and so shadows that touch are parted where it is brightest between; 0
    for what no foot reaches.
    """
    found, levels, is_open = np.zeros(feet.shape, np.int64), heights.numpy(), inside.numpy()
    height, width = found.shape
    starts = feet.numpy()
    # Shortest paths (Dijkstra); all begin at cost 0, which makes the list a heap.
    queue = [(0.0, int(row), int(column), int(starts[row, column])) for row, column in np.argwhere(starts > 0)]
    while queue:
        cost, row, column, foot = heapq.heappop(queue)
        if found[row, column]:
            continue
        found[row, column] = foot
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < height and 0 <= c < width and is_open[r, c] and not found[r, c]:
                # Under a foot nothing is seen, and no brightness known.
                darker = 0.0 if starts[row, column] else max(0.0, float(levels[row, column] - levels[r, c]))
                heapq.heappush(queue, (cost + darker + STEP, r, c, foot))
    return torch.from_numpy(found)
