"""Which splats belong together: inside a box, grown, shrunk, or the largest piece of a lifted mask.

Lifting itself is in `lift.py`. A region is a value in [0, 1] for each splat, as `lift_masks` gives it.
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

from restage.edit.masks.lift import lift_masks, render_masks
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.splats import Splats

__all__ = [
    "RegionScore",
    "box_masks",
    "grow_region",
    "in_box",
    "keep_largest",
    "lift_boxes",
    "measure_region",
    "shrink_region",
]

Region = Float[Tensor, " num_splats"]
INSIDE = 0.5
"""A splat belongs to a region from this value on."""


def box_masks(boxes: Float[Tensor, "n 4"], width: int, height: int) -> Float[Tensor, "n h w"]:
    """Masks of boxes drawn on views: 1 for pixels whose center lies inside.

    Boxes are left, top, right, bottom, in pixels.

    Raises:
        InputError: a box has no inside.
    """
    if not bool(((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all()):
        raise InputError(f"expected boxes as left, top, right, bottom in pixels, got {boxes.tolist()}")
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    across = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    down = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    return (down[:, :, None] & across[:, None, :]).float()


def lift_boxes(splats: Splats, cameras: Cameras, boxes: Float[Tensor, "n 4"], *, agree: float = 0.85) -> Region:
    """The splats that lie in the boxes drawn on several views: what one box takes along, another leaves out.

    A share `agree` of what a splat shows in these views has to lie in the boxes.

    Returns:
        1 or 0 for each splat.
    """
    lifted = lift_masks(splats, cameras, box_masks(boxes, cameras.width, cameras.height))
    return (lifted >= agree).float()


def in_box(splats: Splats, low: Float[Tensor, " 3"], high: Float[Tensor, " 3"]) -> Region:
    """1 for splats whose center lies in a box along the world's axes, in world units; 0 for others."""
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
    points = splats.means.double().numpy()
    if not bool(chosen.any()):
        return torch.zeros(len(splats), dtype=torch.bool)
    found, _ = KDTree(points[chosen.numpy()]).query(points)
    return torch.from_numpy(found <= distance)


def keep_largest(splats: Splats, region: Region, *, reach: float = 3.0) -> Region:
    """Keep the piece of a region that has most splats; pieces are apart if no splat of one is near to one of the other.

    Splats are near that are closer than `reach` times the median distance to the next splat of the region.
    """
    inside = (region >= INSIDE).nonzero()[:, 0]
    if len(inside) < 2:
        return (region >= INSIDE).float()
    points = splats.means[inside].double().numpy()
    tree = KDTree(points)
    spacing = float(np.median(tree.query(points, k=2)[0][:, 1]))
    pairs = tree.query_pairs(reach * spacing, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(inside), len(inside)))
    _, pieces = connected_components(graph, directed=False)
    largest = np.bincount(pieces).argmax()
    kept = torch.zeros(len(splats))
    kept[inside[torch.from_numpy(pieces == largest)]] = 1.0
    return kept


class RegionScore(NamedTuple):
    """How well a region, rendered back, covers masks."""

    iou: float
    """Intersection over union, both above a half."""
    recall: float
    """Share of the masks that is covered."""
    precision: float
    """Share of what is covered that the masks hold."""


def measure_region(splats: Splats, cameras: Cameras, region: Region, masks: Float[Tensor, "n h w"]) -> RegionScore:
    """Render a region back and compare it with masks, over all views at once; NaN for nothing over nothing."""
    shown, wanted = render_masks(splats, cameras, region) > INSIDE, masks > INSIDE
    both, either = float((shown & wanted).sum()), float((shown | wanted).sum())
    return RegionScore(_share(both, either), _share(both, float(wanted.sum())), _share(both, float(shown.sum())))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
