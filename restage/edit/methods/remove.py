"""Takes a thing away: its splats go, what views see behind it comes to light, and what no view sees is filled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from restage.edit.direct.shadows import GRAIN, Shadow, find_shadow, light_up, without_grain
from restage.edit.direct.surface import (
    Painting,
    Plane,
    distance_from,
    fill_unseen,
    find_plane,
    lay_splats,
    look_up,
    paint_plane,
    plane_depths,
)
from restage.edit.editors.interface import AskedPictures
from restage.edit.job import EditJob, EditStep
from restage.edit.methods.renewal import join_splats
from restage.edit.methods.restage import choose_key_views
from restage.records import InputError, derive_seed
from restage.regions.masks import INSIDE, lift_masks, mean_shown, render_masks
from restage.scenes.cameras import Cameras, unproject_depth
from restage.scenes.config import LearningRates, RefineConfig
from restage.scenes.fit import refine_splats
from restage.scenes.optimizer import Targets
from restage.scenes.rasterize import rasterize, splat_weights
from restage.scenes.splats import SH_C0, Splats

__all__ = ["Remove"]

Masks = Float[Tensor, "views height width"]

NEAR, AROUND, REACH = 1.0, 2.5, 7.0
"""The surface that a thing stands on is filled up to the first times its size around its foot, looked for up to the
second around its center, and painted up to the third, which low light throws shadows to."""
THICKNESS = 0.2
"""Splats this near to the surface, as a share of the thing's size, lie on it."""
FRINGE, EDGE = 2, 3
"""Points of the painting right beside what no view sees that are not trusted either, and that the fill goes over."""
STANDS, MIN_STANDING = 0.2, 5
"""Other things stand where so many splats or more are higher above the plane than this share of the thing's size."""
COVERED = 0.8
"""Splats show a surface where they cover a pixel by more than this."""

ON_PLANE, SAME, LIT = 0.05, 0.1, 1.005
"""Nothing is before the plane where the depth that a view shows is less than the first share short of the plane's; it
shows the plane where its color differs by less than the second from the painting's. Gains up to the third change
nothing."""
SHOWS_LIT, PAINTED = 0.2, 0.3
"""Splats are fitted of which this share shows what is lit; pixels that are painted count for less than photographs."""
ROUNDS, RATE = 5, 0.02
"""How often each view is looked at in the fit, and by what rate."""


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Deletes the splats of a region, and fills the place where it was.

    1. The splats of the region go, with a halo: those near it that show nothing but what lies in its silhouettes, or
       nothing at all. So do splats that only the thing had hidden: no view has ever corrected them.
    2. What lies behind is what other views saw there: those splats are there already.
    3. What no view sees is the surface that the thing stands on, under it. That is a plane, fitted to the surfaces
       around the thing (`find_plane`). It is painted from all views, as seen from straight above (`paint_plane`);
       the hole in the painting is filled once, and laid out in flat splats, so that it is the same from all sides.
    4. The shadow on that plane that begins at the thing goes with it (`find_shadow`): the photographs are lit as if it
       was not there, and the colors of the splats that show the place are fitted to them.

    Nothing else changes: all other splats stay bit for bit. Without a region, masks of the editor say what goes.

    Memory: that of the views twice, and of the painting once for each view.
    """

    fill: Literal["editor", "plain"] = "editor"
    """What the hole in the painting is filled with: the view that sees most of it, edited by the editor, or the patch
    of the painting that suits its rim best, without an editor."""
    takes_shadow: bool = True
    """Whether the thing's shadow goes with it."""
    low: float = 0.3
    """Splats go whose weight in the region is at least this: less than half, since a rest of a thing is worse than a
    bit of what is around it, which is filled."""
    halo: float = 0.15
    """The halo reaches so far from the region, as a share of its size."""
    fringe_px: int = 2
    """Views are not trusted up to so many pixels around the thing."""
    num_key_views: int = 24
    """Views that the editor is asked for masks of, where there is no region."""
    takes_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.low <= INSIDE and self.halo >= 0 and self.fringe_px >= 0 and self.num_key_views > 0):
            raise InputError(f"expected low in (0, {INSIDE}], halo and fringe_px of at least 0, and views, got {self}")

    def asks(self, num_views: int) -> AskedPictures:
        """See `restage.edit.job.asked_pictures`."""
        return AskedPictures(min(self.num_key_views, num_views) + (self.fill == "editor"), False)

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Delete, then fill."""
        yield EditStep(0, 2, 0.0, job.splats.clone(), "finding what goes")
        # A few renderings and a painting, which are as quick on the CPU; only the editor needs the scene's device.
        device = job.splats.means.device
        splats, cameras = job.splats.to("cpu"), job.capture.cameras
        thing = _find_thing(self, splats, cameras, self._weights(job).cpu())
        if bool(thing.is_gone.all()):
            raise InputError("the region holds the whole scene; nothing would be left of it")
        kept = _supported(splats, cameras, thing)
        rest = splats[kept].clone()
        yield EditStep(1, 2, 0.0, rest.to(device), f"{len(splats) - len(rest)} splats are gone", kept.to(device))
        plane = _find_support(splats, cameras, thing, seed=job.seed)
        if plane is None:
            note = "there is no surface around it to fill the place with"
            yield EditStep(2, 2, 0.0, rest.to(device), note, kept.to(device))
            return
        hidden, depths = thing.masks, _surfaces(splats, cameras)
        painting = paint_plane(
            plane, cameras, job.capture.images.cpu(), hidden=hidden, depths=depths, reach=REACH * thing.size
        )
        # Right beside what no view sees, views show the thing's rim and its darkest shade.
        painting = replace(painting, is_seen=_dilate((~painting.is_seen)[None].float(), FRINGE)[0] == 0)
        foot = _foot(painting, thing)
        is_needed, reference = _find_hole(painting, cameras, thing.masks, _surfaces(rest, cameras))
        is_needed &= distance_from(foot) * painting.spacing < NEAR * thing.size
        # What lies there already was seen at a slant at best, and in the shade of the thing.
        row, column, inside = _places(painting, rest.means.cpu())
        is_on = painting.plane.heights(rest.means.cpu()).abs() < THICKNESS * thing.size
        stays = ~(inside & is_on & is_needed[row, column]).to(kept.device)
        kept, rest = kept[stays], rest[stays]
        shadow = (
            find_shadow(painting, foot, _others(painting, rest, thing), size=thing.size) if self.takes_shadow else None
        )
        colors, is_dark = painting.colors, torch.zeros_like(is_needed)
        if shadow is not None:
            colors, is_dark = colors * shadow.gains, shadow.share > 0
            rest = _without_shadow(rest, painting, shadow.gains, thickness=THICKNESS * thing.size)
        picture = None
        if self.fill == "editor" and bool((is_needed & ~painting.is_seen).any()):
            yield EditStep(1, 2, 0.0, rest.to(device), "filling one view", kept.to(device))
            edited = job.editor.edit(job.batch([reference], noise_level=1.0, seed=job.seed)).images[0]
            picture = look_up(edited.cpu(), painting.points, cameras[reference])[0]
        filled = fill_unseen(replace(painting, colors=colors), ~is_dark, picture)
        fresh = lay_splats(filled, is_needed, splats.sh.shape[1])
        origins = torch.cat([kept, kept.new_full((len(fresh),), -1)])
        made = join_splats(rest, fresh)
        if shadow is not None:
            yield EditStep(1, 2, 0.0, made.to(device), "fitting views without the shadow", origins.to(device))
            is_under = ~painting.is_seen & (distance_from(foot) * painting.spacing < NEAR * thing.size)
            place = _Place(painting, filled.colors, is_under, shadow, thing.masks, thing.size)
            made = _fit_lit(made, job.capture.images.cpu(), cameras, place, seed=job.seed)
        note = f"{len(splats) - len(rest)} splats are gone, and {len(fresh)} fill the place"
        yield EditStep(2, 2, 0.0, made.to(device), note, origins.to(device))

    def _weights(self, job: EditJob) -> Float[Tensor, " n"]:
        if job.weights is not None:
            return job.weights
        keys = choose_key_views(job.capture.cameras, self.num_key_views)
        edited = job.editor.edit(job.batch(keys, noise_level=1.0, seed=job.seed, may_leave_out=True))
        answered = edited.answered
        cameras = job.capture.cameras[[keys[place] for place in answered]]
        return lift_masks(job.splats, cameras, edited.masks[answered])


class _Thing(NamedTuple):
    """What is taken away."""

    is_gone: Bool[Tensor, " n"]
    points: Float[Tensor, "k 3"]  # centers of the splats that surely belong to it
    center: Float[Tensor, " 3"]
    size: float  # distance from the center that nine tenths of it lie within, in world units
    masks: Masks  # 1 where views show it, or lie at its fringe


def _find_thing(remove: Remove, splats: Splats, cameras: Cameras, weights: Float[Tensor, " n"]) -> _Thing:
    inside = weights >= remove.low
    points = splats.means[weights >= INSIDE]
    if not len(points):
        raise InputError("nothing was found that could be removed; name a region that holds some of the scene's splats")
    center = points.median(dim=0).values
    size = max(float((points - center).norm(dim=1).quantile(0.9)), 1e-6)
    masks = _dilate((render_masks(splats, cameras, inside.float()) > 0.1).float(), remove.fringe_px)
    everywhere = torch.ones_like(masks)
    places = splats.means.double().cpu().numpy()
    away = torch.from_numpy(KDTree(places[inside.cpu().numpy()]).query(places)[0]).to(weights)
    is_shown = _shown(splats, cameras, everywhere) > 1e-3
    is_halo = (away < remove.halo * size) & (~is_shown | (mean_shown(splats, cameras, masks) > 0.9))
    return _Thing(inside | is_halo, points, center, size, masks)


def _supported(splats: Splats, cameras: Cameras, thing: _Thing) -> Int[Tensor, " kept"]:
    """Splats that stay: not those of the thing, nor those that come to light without it and no view has shown."""
    kept = (~thing.is_gone).nonzero()[:, 0]
    elsewhere = _shown(splats, cameras, 1 - thing.masks)[kept]
    come_to_light = _shown(splats[kept], cameras, thing.masks)
    return kept[(come_to_light < 0.01) | (elsewhere > 0.1 * come_to_light)]


def _find_support(splats: Splats, cameras: Cameras, thing: _Thing, *, seed: int) -> Plane | None:
    """The plane around a thing that it stands on or hangs at."""
    depths = _surfaces(splats, cameras)
    ring = (_dilate(thing.masks, max(3, cameras.width // 12)) > 0) & (thing.masks == 0) & torch.isfinite(depths)
    points = torch.cat([unproject_depth(depths[view], cameras[view])[ring[view]] for view in range(len(cameras))])
    points = points[(points - thing.center).norm(dim=1) < AROUND * thing.size]
    return find_plane(points, thing.points, cameras, size=thing.size, seed=seed)


class _Hole(NamedTuple):
    is_needed: Bool[Tensor, "rows columns"]  # points of the plane that some view looks through
    reference: int  # the view that sees most of them


def _find_hole(painting: Painting, cameras: Cameras, masks: Masks, depths: Masks) -> _Hole:
    """Where views look through a plane once the thing is gone; `depths` are those of what they show then."""
    is_needed, counts = torch.zeros_like(painting.is_seen), []
    for view in range(len(cameras)):
        is_open = (masks[view] > 0).cpu() & (depths[view].cpu() > 1.03 * plane_depths(painting.plane, cameras[view]))
        found = look_up(is_open.float()[None], painting.points, cameras[view])[0][0] > 0.25
        counts.append(int(found.sum()))
        is_needed |= found
    # Elsewhere there are splats that views have shown, if not exactly on the plane.
    is_needed &= _dilate((~painting.is_seen)[None].float(), EDGE)[0] > 0
    is_needed &= ~painting.is_empty
    return _Hole(is_needed, counts.index(max(counts)))


def _foot(painting: Painting, thing: _Thing) -> Bool[Tensor, "rows columns"]:
    """Points of a painting below the lowest part of the thing."""
    low = thing.points.cpu()[painting.plane.heights(thing.points.cpu()) < 0.3 * thing.size]
    foot = torch.zeros_like(painting.is_seen)
    row, column, inside = _places(painting, low)
    foot[row[inside], column[inside]] = True
    return foot


def _others(painting: Painting, rest: Splats, thing: _Thing) -> Bool[Tensor, "rows columns"]:
    """Points of a painting that other things stand on."""
    points = rest.means[rest.opacity_logits > 0].cpu()
    high = points[painting.plane.heights(points) > STANDS * thing.size]
    row, column, inside = _places(painting, high)
    counts = torch.zeros(painting.is_seen.shape)
    counts.index_put_((row[inside], column[inside]), torch.ones(int(inside.sum())), accumulate=True)
    # A single splat high above the plane is a floater.
    width = max(1, round(STANDS * thing.size / painting.spacing))
    near = functional.avg_pool2d(counts[None, None], 2 * width + 1, 1, width)[0, 0] * (2 * width + 1) ** 2
    return near >= MIN_STANDING


def _places(painting: Painting, points: Float[Tensor, "n 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of the point of a painting below each point, clamped, and whether it lies inside."""
    offsets = (points - painting.points[0, 0]) @ painting.plane.axes[:2].T / painting.spacing
    column, row = offsets.round().long().unbind(1)
    height, width = painting.is_seen.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row.clamp(0, height - 1), column.clamp(0, width - 1), inside


def _without_shadow(
    splats: Splats, painting: Painting, gains: Float[Tensor, "3 rows columns"], *, thickness: float
) -> Splats:
    """Brighten the splats that lie on a plane."""
    points = splats.means.cpu()
    row, column, inside = _places(painting, points)
    is_on = inside & (painting.plane.heights(points).abs() < thickness)
    factors = torch.where(is_on[:, None], gains[:, row, column].T, 1.0).to(splats.sh)
    is_lit = (factors > 1).any(dim=1)
    lit = splats.clone()
    lit.sh[is_lit] *= factors[is_lit, None]
    lit.sh[is_lit, 0] += 0.5 * (factors[is_lit] - 1) / SH_C0  # colors are harmonics plus one half
    return lit


class _Place(NamedTuple):
    """The surface that a thing stood on, as it was and as it is to be."""

    painting: Painting
    filled: Float[Tensor, "3 rows columns"]  # its colors, without the thing and its shadow
    is_under: Bool[Tensor, "rows columns"]  # what no view shows below the thing and right beside it
    shadow: Shadow
    masks: Masks  # of the thing
    size: float  # of the thing


def _fit_lit(splats: Splats, images: Float[Tensor, "n 3 h w"], cameras: Cameras, place: _Place, *, seed: int) -> Splats:
    """Fit the colors of splats that show a lit part of a plane to photographs that are lit the same.

    Splats are larger than the edge of a shadow is wide, so that a gain for each leaves the edge to be seen; in the
    photographs, edges lie where they are, even if the ground is no plane. Where the thing was, there is the painting.
    """
    depths, painting, shadow = _surfaces(splats, cameras), place.painting, place.shadow
    plain = torch.stack(
        [shadow.share, painting.is_seen.float(), place.is_under.float(), torch.ones(shadow.share.shape)]
    )
    maps = torch.cat([shadow.light, place.filled, painting.colors, plain])
    targets, weights, is_lit = images.clone(), 1 - place.masks, torch.zeros_like(place.masks)
    for view in range(len(cameras)):
        away, image = plane_depths(painting.plane, cameras[view]), images[view]
        is_ahead = torch.isfinite(away)
        if not is_ahead.any():  # a camera that looks past the plane
            continue
        is_open = is_ahead & (depths[view] > (1 - ON_PLANE) * away)
        is_on = is_open & (depths[view] < (1 + ON_PLANE) * away)
        points = unproject_depth(torch.where(is_open, away, 1.0), cameras[view])
        offsets = (points - painting.points[0, 0]) @ painting.plane.axes[:2].T / painting.spacing
        grid = (offsets / (torch.tensor(maps.shape[:0:-1]) - 1) * 2 - 1)[None]
        found = functional.grid_sample(maps[None], grid, align_corners=True)[0]
        light, filled, color = found[:9].split(3)
        share, seen, under, within = found[9:]
        is_in = within > 0.99
        # Where the ground lies lower than the plane, only its color says that it is what was painted.
        is_same = is_in & (seen > 0.5) & (is_on | (is_open & ((image - color).abs().mean(dim=0) < SAME)))
        focal, middle = float(cameras.intrinsics[view, 0, 0]), float(away[is_ahead].median())
        smooth = without_grain(image, GRAIN * place.size * focal / middle)
        factors = light_up(smooth, light, share * is_same)
        is_painted = is_in & is_on & ((under > 0.5) | ((place.masks[view] > 0) & (share > 0)))
        targets[view] = torch.where(is_painted, filled, image * factors).clamp(0, 1)
        weights[view] = torch.where(is_painted, PAINTED, weights[view])
        is_lit[view] = (is_painted | (factors > LIT).any(dim=0)).float()
    trainable = (mean_shown(splats, cameras, is_lit) > SHOWS_LIT).float()
    config = RefineConfig(
        steps=ROUNDS * len(cameras),
        rates=LearningRates(means=0.0, log_scales=0.0, rotations=0.0, opacity_logits=0.0, sh=RATE),
        cooldown_share=0.5,
        seed=derive_seed(seed, "light"),
    )
    for step in refine_splats(splats, Targets(cameras, targets, weights), config=config, trainable=trainable):
        last = step
    return last.splats.detach()


def _shown(splats: Splats, cameras: Cameras, maps: Masks) -> Float[Tensor, " n"]:
    """Blending weight of each splat over all pixels, times the maps."""
    return sum(
        (splat_weights(splats, cameras[view], maps[view][None])[0][:, 0] for view in range(len(cameras))),
        start=splats.means.new_zeros(len(splats)),
    )


def _dilate(masks: Masks, radius: int) -> Masks:
    return functional.max_pool2d(masks[:, None], 2 * radius + 1, 1, radius)[:, 0]


@torch.no_grad()
def _surfaces(splats: Splats, cameras: Cameras) -> Masks:
    """Depth of what views show; infinite where that is mostly nothing."""
    found = []
    for view in range(len(cameras)):
        rendering = rasterize(splats.detach(), cameras[view])
        found.append(torch.where(rendering.alpha > COVERED, rendering.depth, torch.inf))
    return torch.stack(found)
