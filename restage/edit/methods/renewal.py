"""Splats that an edit does away with, and new ones for what the old cannot show.

`restage.py` asks for both once colors are fitted: first which are gone, then where several views agree on a surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from restage.edit.sharing import DepthMaps, render_depths
from restage.records import InputError
from restage.regions.masks import MIN_TOTAL_WEIGHT, mean_shown
from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.scenes.fit import render_views
from restage.scenes.rasterize import splat_weights
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Births", "Deaths", "KeyViews", "color_spreads", "fade", "find_gone", "join_splats", "seed_splats"]

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
    """What is known of the views that a scene is fitted to."""

    cameras: Cameras
    unedited: Float[Tensor, "n 3 h w"]  # renders of the scene before the edit
    edited: Float[Tensor, "n 3 h w"]  # the edited views
    masks: Float[Tensor, "n h w"]  # where they show an edit: above 0.5


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
    total = torch.zeros(len(splats), device=images.device)
    first, second = torch.zeros(2, len(splats), 3, device=images.device)
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


FIRST_SHARE = 0.25
"""Points on a ray begin at this share of the depth of the old surface."""
MAX_DEPTH = 3.0
"""Where the old surface is farther than so many times the median depth, as the sky is, points end there."""
DEPTH_SLACK = 1.02
"""A point this much behind the old surface still counts as before it."""
COLOR_SLACK = 0.02
"""Of the points whose color is confirmed about as well, within this of the best, the nearest is the surface."""
SCALE_SHARE = 0.6
"""Standard deviation of a new splat, as a share of the distance to the next one."""


@dataclass(frozen=True, kw_only=True)
class Births:
    """Where splats are seeded, and how many.

    Rays go out from pixels that the old splats, in new colors, cannot explain. A point of a ray is solid where nearly
    all key views that could see it, since no old surface hides it, show an edit there (the visual hull of the masks:
    Laurentini 1994, doi 10.1109/34.273735). The surface of a ray is the nearest of the solid points whose color the
    neighbouring views confirm (as in space carving: Kutulakos and Seitz 2000, doi 10.1023/A:1008191222954). A ray that
    meets nothing empty on its way seeds nothing: where an edit covers all, its masks say nothing about depth. In the
    end those seeds are kept that bring all views that show them closer to the edit. So nothing is born by a new ground
    or time of the day, or where views disagree on the place or the color.
    """

    residual: float = 0.12
    """Pixels send a ray where the fitted scene is off by more than this, in [0, 1], mean over channels,"""
    residual_share: float = 0.4
    """and by more than this share of what the edit changes there,"""
    crowd: float = 0.5
    """and where more than this share of the 3 x 3 pixels around do: lines at the edges of things are not missing."""
    min_share: float = 0.9
    """Share of the views that could see a point that must show an edit there, in (0, 1]."""
    min_views: int = 5
    """Views, at least, that could see it."""
    color_limit: float = 0.06
    """How far neighbouring views may be from a ray's color, in [0, 1], mean over channels."""
    num_neighbours: int = 4
    """Views nearest to a ray's own that its color is compared in."""
    max_rays: int = 6000
    """Rays over all key views; pixels are thinned out evenly."""
    num_depths: int = 40
    """Points that are tried along a ray."""
    spacing_px: float = 1.5
    """Distance between new splats, in pixels of the key views at their depth."""
    min_gain: float = 0.03
    """New splats are kept that bring what views show at them closer to the edit by this, in [0, 1], on the average."""
    max_share: float = 0.5
    """New splats, at most, as a share of the old ones."""
    opacity: float = 0.8
    """Of a new splat."""

    def __post_init__(self) -> None:
        if not (0 < self.min_share <= 1 and 0 < self.opacity < 1 and self.max_share >= 0 and self.spacing_px > 0):
            raise InputError(f"expected shares and opacity in (0, 1) and a spacing above 0, got {self}")
        if min(self.min_views, self.max_rays, self.num_depths, self.num_neighbours) < 1:
            raise InputError(f"expected counts of at least 1, got {self}")


class _Rays(NamedTuple):
    views: Int[Tensor, " rays"]
    points: Float[Tensor, "rays depths 3"]  # in world units, near ones first
    colors: Float[Tensor, "rays 3"]


class _Tested(NamedTuple):
    is_solid: Bool[Tensor, "rays depths"]
    is_empty: Bool[Tensor, "rays depths"]  # seen by enough views, and not solid
    errors: Float[Tensor, "rays depths"]  # mean distance of the ray's color from what neighbouring views show there


@torch.no_grad()
def seed_splats(births: Births, splats: Splats, key_views: KeyViews, *, max_count: int) -> Splats:
    """Seed round splats on the surfaces that the edited views agree on, `max_count` at most; none if they do not agree.

    `splats` have their colors fitted to the edited views, and are without what is gone.
    """
    cameras, maps = key_views.cameras, render_depths(splats, key_views.cameras)
    residuals = (render_views(splats, cameras) - key_views.edited).abs().mean(dim=1)
    rays = _cast_rays(births, key_views, residuals, maps)
    tested = _test_points(births, rays, key_views, maps)
    # Where an edit covers all, every point looks solid: a surface counts only once its ray has crossed empty space.
    has_entered = tested.is_empty.int().cumsum(dim=1) > 0
    errors = torch.where(tested.is_solid & has_entered, tested.errors, torch.inf)
    best = errors.amin(dim=1)
    # Colors are confirmed about as well behind a surface as on it, so the nearest of the good points is taken.
    chosen = (errors <= best[:, None] + COLOR_SLACK).int().argmax(dim=1)
    is_found = best < births.color_limit
    points = rays.points[torch.arange(len(chosen), device=chosen.device), chosen][is_found]
    colors, views = rays.colors[is_found], rays.views[is_found]
    depths = (points - cameras.positions.to(points)[views]).norm(dim=1)
    sizes = births.spacing_px * depths / cameras.intrinsics.to(points)[views, 0, 0]
    kept = _thin_out(points, sizes, max_count)
    fresh = _round_splats(points[kept], colors[kept], sizes[kept], births.opacity, splats.sh.shape[1])
    return fresh[_are_of_use(births, splats, fresh, key_views, residuals)]


def join_splats(first: Splats, second: Splats) -> Splats:
    """The splats of both, in this order."""
    ours, added = first.parameters(), second.parameters()
    return Splats(**{name: torch.cat([ours[name], added[name]]) for name in ours})


def _are_of_use(
    births: Births, splats: Splats, fresh: Splats, key_views: KeyViews, residuals: Float[Tensor, "n h w"]
) -> Bool[Tensor, " fresh"]:
    """Which new splats bring the views that show them closer to the edit; where views disagree, none does."""
    # Judged in the finished picture: a seed may be right by itself and yet hide what was right before.
    joined = join_splats(splats, fresh)
    changes = (render_views(joined, key_views.cameras) - key_views.edited).abs().mean(dim=1) - residuals
    return mean_shown(joined, key_views.cameras, changes)[len(splats) :] < -births.min_gain


def _cast_rays(births: Births, key_views: KeyViews, residuals: Float[Tensor, "n h w"], maps: DepthMaps) -> _Rays:
    cameras, depths = maps.cameras, maps.depths.flatten(1)
    changes = (key_views.unedited - key_views.edited).abs().mean(dim=1)
    wanted = (residuals > births.residual) & (residuals > births.residual_share * changes) & (key_views.masks > 0.5)
    wanted &= functional.avg_pool2d(wanted[:, None].float(), 3, stride=1, padding=1)[:, 0] > births.crowd
    chosen = wanted.flatten().nonzero()[:, 0]
    # Evenly thinned, so that no view and no part of one is preferred, and the memory has a bound.
    if len(chosen) > births.max_rays:
        chosen = chosen[torch.linspace(0, len(chosen) - 1, births.max_rays).long().to(chosen.device)]
    views, pixels = chosen // depths.shape[1], chosen % depths.shape[1]
    is_known = torch.isfinite(depths)
    # The sky has no depth to end a ray at, and points that far off would be too far apart to find anything.
    limit = MAX_DEPTH * float(depths[is_known].median()) if bool(is_known.any()) else 1.0
    unit_depth = torch.ones(cameras.height, cameras.width, device=depths.device)
    ends = torch.stack([unproject_depth(unit_depth, cameras[view]).reshape(-1, 3) for view in range(len(cameras))])
    starts = cameras.positions.to(depths.device)[views]
    along = (ends[views, pixels] - starts) * depths[views, pixels].clamp_max(limit)[:, None]
    shares = torch.linspace(FIRST_SHARE, 1.0, births.num_depths, device=depths.device)
    points = starts[:, None] + along[:, None] * shares[:, None]
    return _Rays(views, points, key_views.edited.flatten(2)[views, :, pixels])


def _test_points(births: Births, rays: _Rays, key_views: KeyViews, maps: DepthMaps) -> _Tested:
    cameras, shape = maps.cameras, rays.points.shape[:2]
    points, owners = rays.points.reshape(-1, 3), rays.views.repeat_interleave(shape[1])
    own_colors = rays.colors.repeat_interleave(shape[1], dim=0)
    is_neighbour = _neighbours(cameras, births.num_neighbours).to(points.device)
    seen, shown, error, compared = torch.zeros(4, len(points), device=points.device)
    for view in range(len(cameras)):
        pixels, depths = project_points(points, cameras[view])
        column, row = pixels.floor().long().unbind(1)
        is_inside = (depths > 0) & (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        index = torch.where(is_inside, row * cameras.width + column, 0)
        # A view behind whose old surface the point lies cannot say anything about it.
        is_free = is_inside & (depths <= DEPTH_SLACK * maps.depths[view].flatten()[index])
        is_edited = is_free & (key_views.masks[view].flatten()[index] > 0.5)
        seen += is_free
        shown += is_edited
        counts = is_edited & is_neighbour[owners, view]
        error += counts * (key_views.edited[view].flatten(1)[:, index].T - own_colors).abs().mean(dim=1)
        compared += counts
    # Masks are cut off a little too small now and then, hence a share of the views and not all of them.
    is_seen, is_shown = seen >= births.min_views, shown >= births.min_share * seen
    is_solid = is_seen & is_shown & (compared > 0)
    errors = error / compared.clamp_min(1)
    return _Tested(is_solid.reshape(shape), (is_seen & ~is_shown).reshape(shape), errors.reshape(shape))


def _neighbours(cameras: Cameras, count: int) -> Bool[Tensor, "n n"]:
    """Which views are nearest to each by position; none is its own neighbour."""
    distances = (cameras.positions[:, None] - cameras.positions).norm(dim=2)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1)[:, : min(count, len(cameras) - 1)]
    return torch.zeros(len(cameras), len(cameras), dtype=torch.bool).scatter_(1, nearest, True)


def _thin_out(points: Float[Tensor, "m 3"], sizes: Float[Tensor, " m"], max_count: int) -> Int[Tensor, " kept"]:
    """Indices of one point in each cell of a grid as wide as the sizes, wider if they would be too many."""
    if not len(points) or max_count < 1:
        return torch.zeros(0, dtype=torch.long, device=points.device)
    size = float(sizes.median())
    # Many rays end on the same surface: one point a cell is a surface, all of them are a heap.
    while True:
        _, cells = torch.unique(torch.floor((points - points.amin(dim=0)) / size), dim=0, return_inverse=True)
        first = cells.new_full((int(cells.max()) + 1,), len(points))
        first.scatter_reduce_(0, cells, torch.arange(len(points), device=cells.device), "amin")
        if len(first) <= max_count:
            return first
        size *= 1.2


def _round_splats(points: Tensor, colors: Tensor, sizes: Tensor, opacity: float, num_harmonics: int) -> Splats:
    sh = torch.zeros(len(points), num_harmonics, 3, device=points.device)
    sh[:, 0] = (colors - 0.5) / SH_C0
    return Splats(
        means=points.clone(),
        log_scales=(SCALE_SHARE * sizes).log()[:, None].repeat(1, 3),
        rotations=sh.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(points), 1),
        opacity_logits=sh.new_full((len(points),), opacity).logit(),
        sh=sh,
    )
