"""Old splats that an edit does away with: views ask them for different things, and are shown better without them.

`restage.py` calls it after colors are fitted, which paints what is gone in the colors of what lies behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from restage.edit.masks.lift import MIN_TOTAL_WEIGHT
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.fit import render_views
from restage.scenes.rasterize import splat_weights
from restage.scenes.splats import Splats

__all__ = ["Deaths", "KeyViews", "color_spreads", "fade", "find_gone", "mean_shown"]

GONE_LOGIT = -6.0
"""Opacity logit of a splat that is gone: hardly to be seen, and can still come back in the fit."""


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """Which splats are gone.

    A splat that stays is asked for one color from all sides, but one that is gone for whatever lies behind it, which
    differs from view to view. So the spread of the edited views' colors at a splat, over that of the unedited ones,
    says that something was taken away (over 0.03 for 12 to 14 % of the splats of a removal, for 0 to 1 % of those of
    a new ground or time). Views that disagree by chance spread as well; therefore a splat dies only if the edited
    views are shown better without it than with it painted.
    """

    spread: float = 0.04
    """Standard deviation between views, in [0, 1], beyond that of the unedited views, from which on it counts."""
    lift_threshold: float = 0.8
    """Only splats die whose lifted mask is above this: an edit covers what is gone in all views that saw it."""
    min_gain: float = 0.02
    """How much better, in [0, 1], the views must be shown without such a splat, on the average over what it shows."""
    slack: float = 0.01
    """How much worse they may be shown without a splat that belongs to it, but has nothing uneven behind it."""

    def __post_init__(self) -> None:
        if not (self.spread > 0 and 0 <= self.lift_threshold < 1 and self.slack >= 0 and self.min_gain >= 0):
            raise InputError(f"expected spread > 0, lift_threshold in [0, 1), slack and min_gain >= 0, got {self}")


class KeyViews(NamedTuple):
    """What is known of the views that a scene is fitted to; `births.py` reads it, too."""

    cameras: Cameras
    unedited: Float[Tensor, "n 3 h w"]
    """Renders of the scene before the edit."""
    edited: Float[Tensor, "n 3 h w"]
    """The edited views."""
    masks: Float[Tensor, "n h w"]
    """Where they show an edit: above 0.5."""


@torch.no_grad()
def find_gone(
    deaths: Deaths, splats: Splats, views: KeyViews, *, lifted: Float[Tensor, " num_splats"]
) -> Bool[Tensor, " num_splats"]:
    """Find the splats that are gone.

    `splats` have their colors fitted to the edited views, and shapes as before; `lifted` is the lifted mask of each.
    """
    cameras = views.cameras
    targets = torch.lerp(views.unedited, views.edited, views.masks[:, None])
    painted = render_views(splats, cameras)
    may_go = lifted > deaths.lift_threshold
    # Shiny things spread before any edit as well; only what the edit adds to it counts.
    spreads = color_spreads(splats, cameras, targets) - color_spreads(splats, cameras, views.unedited)
    is_torn = may_go & (spreads > deaths.spread)
    with_it = (painted - targets).abs().mean(dim=1)
    gone = torch.zeros_like(may_go)
    rest = may_go & ~is_torn
    # First the torn ones, which must pay; then those that belong to them before an even background: they must not harm.
    for candidates, limit in ((is_torn, -deaths.min_gain), (rest, deaths.slack)):
        if not bool((is_torn | gone).any()):
            return gone
        without = (render_views(fade(splats, gone | candidates), cameras) - targets).abs().mean(dim=1)
        gone = gone | (candidates & (mean_shown(splats, cameras, without - with_it) <= limit))
        is_torn = torch.zeros_like(is_torn)
    return gone


def color_spreads(splats: Splats, cameras: Cameras, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " num_splats"]:
    """Standard deviation, over the views, of the color that each splat is asked to show; 0 for an unseen splat."""
    # Variance as E[x^2] - E[x]^2, over views: the sums need no memory for each view.
    total = torch.zeros(len(splats))
    first, second = torch.zeros(len(splats), 3), torch.zeros(len(splats), 3)
    for view in range(len(cameras)):
        weighted, seen = splat_weights(splats, cameras[view], images[view])
        total += seen
        first += weighted
        second += weighted.square() / seen.clamp_min(1e-9)[:, None]
    scale = 1 / total.clamp_min(MIN_TOTAL_WEIGHT)[:, None]
    variances = (second * scale - (first * scale).square()).clamp_min(0).mean(dim=1)
    return torch.where(total > MIN_TOTAL_WEIGHT, variances.sqrt(), 0.0)


def fade(splats: Splats, gone: Bool[Tensor, " num_splats"]) -> Splats:
    """A copy in which these splats can hardly be seen."""
    # Faded and not removed, so that indices stay, and a wrong death can be undone by the fit.
    faded = splats.clone()
    faded.opacity_logits[gone] = faded.opacity_logits[gone].clamp_max(GONE_LOGIT)
    return faded


def mean_shown(splats: Splats, cameras: Cameras, maps: Float[Tensor, "n h w"]) -> Float[Tensor, " num_splats"]:
    """Mean of maps, of any values, over all that a splat shows, weighted by its blending weight; 0 if unseen."""
    sums, total = torch.zeros(len(splats)), torch.zeros(len(splats))
    for view in range(len(cameras)):
        weighted, seen = splat_weights(splats, cameras[view], maps[view][None])
        sums, total = sums + weighted[:, 0], total + seen
    return torch.where(total > MIN_TOTAL_WEIGHT, sums / total.clamp_min(MIN_TOTAL_WEIGHT), 0.0)
