"""Which splats an edit may touch: masks lifted from views and rendered back, and regions made from them.

A region is a value in [0, 1] for each splat, as `lift_masks` gives it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.rasterize import rasterize, splat_weights
from restage.scenes.splats import Splats

__all__ = [
    "RegionScore",
    "box_masks",
    "grow_region",
    "in_box",
    "join_masks",
    "keep_largest",
    "lift_boxes",
    "lift_features",
    "lift_masks",
]
__all__ += ["mean_shown", "measure_region", "render_masks", "shrink_region"]

Masks = Float[Tensor, "n h w"]
Region = Float[Tensor, " num_splats"]

MIN_TOTAL_WEIGHT = 1e-3
"""A splat with less blending weight than this, summed over all pixels of all views, counts as unseen."""


def mean_shown(splats: Splats, cameras: Cameras, maps: Masks) -> Region:
    """Mean of maps, of any values, over all that a splat shows, weighted by its blending weight; 0 if unseen."""
    return lift_features(splats, cameras, maps[:, None])[:, 0]


def lift_features(splats: Splats, cameras: Cameras, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "num_splats c"]:
    """Means as in `mean_shown` of maps of several channels."""
    sums, total = (
        torch.zeros(len(splats), maps.shape[1], device=maps.device),
        torch.zeros(len(splats), device=maps.device),
    )
    for view in range(len(cameras)):
        weighted, seen = splat_weights(splats, cameras[view], maps[view])
        sums, total = sums + weighted, total + seen
    return torch.where(total[:, None] > MIN_TOTAL_WEIGHT, sums / total[:, None].clamp_min(MIN_TOTAL_WEIGHT), 0.0)


def lift_masks(splats: Splats, cameras: Cameras, masks: Masks) -> Region:
    """Mask value in [0, 1] of each splat: mean of the masks over all pixels, weighted by its blending weight there.

    The weight is opacity x transmittance, so splats behind the masked surface stay out (counting pixels unweighted
    brings them along). A splat that no view sees gets 0.
    """
    return mean_shown(splats, cameras, masks).clamp(0, 1)


@torch.no_grad()
def render_masks(splats: Splats, cameras: Cameras, values: Region) -> Masks:
    """How much of what each pixel shows, in [0, 1], comes from splats of value 1: values are blended like colors."""
    views = [rasterize(splats.detach(), cameras[i], features=values[:, None]) for i in range(len(cameras))]
    return torch.stack([view.features[0] for view in views]).clamp(0, 1)


JOIN_LOW, JOIN_HIGH = 0.3, 0.6
"""Splats up to the first lifted value are outside of what views agree on, from the second on inside."""


def join_masks(splats: Splats, cameras: Cameras, masks: Masks) -> Masks:
    """Masks of views as the splats show what most of them agree on; those of a single view stay as they are."""
    if len(masks) < 2:
        return masks
    agreed = (lift_masks(splats, cameras, masks) - JOIN_LOW) / (JOIN_HIGH - JOIN_LOW)
    return render_masks(splats, cameras, agreed.clamp(0, 1))


INSIDE = 0.5
"""A splat belongs to a region from this value on."""


def box_masks(boxes: Float[Tensor, "n 4"], width: int, height: int) -> Masks:
    """Masks of boxes drawn on views (left, top, right, bottom, in pixels): 1 for pixels whose center lies inside."""
    if not bool(((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all()):
        raise InputError(f"expected boxes as left, top, right, bottom in pixels, got {boxes.tolist()}")
    x, y = (torch.arange(side, device=boxes.device) + 0.5 for side in (width, height))
    across = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    down = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    return (down[:, :, None] & across[:, None, :]).float()


def lift_boxes(splats: Splats, cameras: Cameras, boxes: Float[Tensor, "n 4"], *, agree: float = 0.85) -> Region:
    """The splats of which a share `agree`, of what they show in several views, lies in the boxes drawn there; 0 or 1.

    What one box takes along, another leaves out.
    """
    masks = box_masks(boxes.to(splats.means.device), cameras.width, cameras.height)
    return (lift_masks(splats, cameras, masks) >= agree).float()


def in_box(splats: Splats, low: Float[Tensor, " 3"], high: Float[Tensor, " 3"]) -> Region:
    """1 for splats whose center lies in a box along the world's axes, in world units; 0 for others."""
    low, high = low.to(splats.means.device), high.to(splats.means.device)
    return ((splats.means >= low) & (splats.means <= high)).all(dim=1).float()


def grow_region(splats: Splats, region: Region, distance: float) -> Region:
    """Take in all splats within a distance, in world units, of one that belongs to the region."""
    return _near(splats, region >= INSIDE, distance).float()


def shrink_region(splats: Splats, region: Region, distance: float) -> Region:
    """Let go of all splats within a distance, in world units, of one that does not belong to the region."""
    return ((region >= INSIDE) & ~_near(splats, region < INSIDE, distance)).float()


def _near(splats: Splats, chosen: Tensor, distance: float) -> Tensor:
    if not distance >= 0:
        raise InputError(f"expected a distance of at least 0, got {distance}")
    if not bool(chosen.any()):
        return torch.zeros_like(chosen)
    points = splats.means.double().cpu().numpy()
    found, _ = KDTree(points[chosen.cpu().numpy()]).query(points)
    return torch.from_numpy(found <= distance).to(chosen.device)


MAX_NEIGHBORS = 8
MANY_NEIGHBORS, MAX_PAIRS = 32, 2e7
"""Where there are more pairs of near splats, as among a million of them, so many neighbors of each are looked at."""
MAX_SIZE = 10.0
"""Splats count as at most so many times as large as the median distance to the next one: floaters reach far."""


def keep_largest(splats: Splats, region: Region, *, reach: float = 3.0) -> Region:
    """Keep the piece of a region that has most splats; pieces are apart if no splat of one is near to one of the other.

    Splats are near that are closer than `reach` times the median distance to the next splat of the region, or than the
    size of one of them: where a scene is smooth, few large splats cover it.
    """
    inside = (region >= INSIDE).nonzero()[:, 0]
    if len(inside) < 2:
        return (region >= INSIDE).float()
    points = splats.means[inside].double().cpu().numpy()
    tree = KDTree(points)
    distances, neighbors = map(np.asarray, tree.query(points, k=min(MAX_NEIGHBORS, len(points) - 1) + 1))
    spacing = float(np.median(distances[:, 1]))
    if tree.count_neighbors(tree, reach * spacing) <= MAX_PAIRS:
        pairs = tree.query_pairs(reach * spacing, output_type="ndarray")
    else:  # where there are more neighbors, the nearest ones hang together as well
        away, others = map(np.asarray, tree.query(points, k=MANY_NEIGHBORS, distance_upper_bound=reach * spacing))
        pairs = np.stack([np.isfinite(away).nonzero()[0], others[np.isfinite(away)]], axis=1)
    sizes = splats.log_scales[inside].detach().exp().amax(dim=1).double().cpu().numpy().clip(max=MAX_SIZE * spacing)
    is_near = distances <= np.maximum(sizes[:, None], sizes[neighbors])
    pairs = np.concatenate([pairs, np.stack([is_near.nonzero()[0], neighbors[is_near]], axis=1)])
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(inside), len(inside)))
    _, pieces = connected_components(graph, directed=False)
    largest = np.bincount(pieces).argmax()
    kept = torch.zeros(len(splats), device=region.device)
    kept[inside[torch.from_numpy(pieces == largest).to(region.device)]] = 1.0
    return kept


class RegionScore(NamedTuple):
    """How well a region, rendered back, covers masks."""

    iou: float  # intersection over union, both above a half
    recall: float  # share of the masks that is covered
    precision: float  # share of what is covered that the masks hold


def measure_region(splats: Splats, cameras: Cameras, region: Region, masks: Masks) -> RegionScore:
    """Render a region back and compare it with masks, over all views at once; NaN for nothing over nothing."""
    shown, wanted = render_masks(splats, cameras, region) > INSIDE, masks > INSIDE
    both, either = float((shown & wanted).sum()), float((shown | wanted).sum())
    wholes = (either, float(wanted.sum()), float(shown.sum()))
    return RegionScore(*(both / whole if whole else float("nan") for whole in wholes))
