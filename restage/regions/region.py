"""What a region is: a weight for each splat of one scene, and how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import InputError, content_id
from restage.regions.masks import INSIDE, grow_region, keep_largest, render_masks, shrink_region
from restage.scenes.cameras import Cameras
from restage.scenes.io.images import quantize
from restage.scenes.splats import Splats

__all__ = ["FAINT", "Region", "combine", "grow", "largest", "render_region", "shrink", "splats_sha256"]

FAINT = 0.05
"""Rendered masks fade out far around what they show; below this they are 0."""


def splats_sha256(splats: Splats) -> str:
    """Hash of all numbers of splats, wherever they lie; a file that keeps every bit (PLY) gives the same."""
    digest = hashlib.sha256()
    for name, tensor in splats.parameters().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Region:
    """Which splats of a scene are meant."""

    weights: Float[Tensor, " n"]  # of each splat in [0, 1], on the CPU; from 0.5 on it belongs to the region
    made: Mapping[str, Any]  # how it came about, as plain data: `by` names the way
    splats_sha256: str  # of the splats that it belongs to; see the function of this name

    def __post_init__(self) -> None:
        weights = self.weights
        if weights.device.type != "cpu" or not bool(((weights >= 0) & (weights <= 1)).all()):
            raise InputError(f"expected weights in [0, 1] on the CPU, got {weights.aminmax()} on {weights.device}")

    @classmethod
    def of(cls, splats: Splats, weights: Float[Tensor, " n"], **made: Any) -> Region:
        """Make a region of these splats; `made` says how it came about, beginning with `by`."""
        if len(weights) != len(splats):
            raise InputError(f"expected a weight for each of {len(splats)} splats, got {len(weights)}")
        return cls(weights.detach().float().cpu(), made, splats_sha256(splats))

    @cached_property
    def id(self) -> str:
        """Content id."""
        weights_sha256 = hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()
        return content_id("region", {"weights": weights_sha256, "made": self.made, "splats": self.splats_sha256})

    @property
    def inside(self) -> Tensor:
        """Whether each splat belongs to it."""
        return self.weights >= INSIDE

    @property
    def share(self) -> float:
        """Share of the splats that belong to it."""
        return float(self.inside.float().mean())

    def check_fits(self, splats: Splats, what: str = "the region") -> None:
        """Refuse splats that the region was not made for."""
        if len(splats) != len(self.weights) or splats_sha256(splats) != self.splats_sha256:
            raise InputError(
                f"{what} belongs to other splats ({len(self.weights)} of them; the scene has {len(splats)}), such as "
                "those of an earlier fit; make it again"
            )

    def _origin(self) -> dict[str, Any]:
        return {"id": self.id, **self.made}

    def _changed(self, splats: Splats, change: Callable[..., Tensor], *numbers: float, **made: Any) -> Region:
        self.check_fits(splats)
        weights = change(splats, self.weights.to(splats.means.device), *numbers)
        return Region(weights.cpu(), {**made, "of": [self._origin()]}, self.splats_sha256)


def combine(how: str, *regions: Region) -> Region:
    """Combine regions of the same splats: `and` takes the least weight, `or` the greatest, `not` 1 minus that of one.

    Raises:
        InputError: another way, regions of different splats, or a number of regions that the way does not take.
    """
    if how not in ("and", "or", "not") or not regions or (how == "not" and len(regions) > 1):
        raise InputError(f"expected and, or (one region or more), or not (one region), got {how} of {len(regions)}")
    hashes = {region.splats_sha256 for region in regions}
    if len(hashes) > 1:
        raise InputError("expected regions of the same splats, got some of other splats, such as of an earlier fit")
    weights = torch.stack([region.weights for region in regions])
    combined = {"and": weights.amin(dim=0), "or": weights.amax(dim=0), "not": 1 - weights.amax(dim=0)}[how]
    made = {"by": how, "of": [region._origin() for region in regions]}
    return Region(combined, made, *hashes)


def grow(region: Region, splats: Splats, distance: float) -> Region:
    """Take in all splats within a distance, in world units, of the region; weights become 0 or 1."""
    return region._changed(splats, grow_region, distance, by="grow", distance=distance)


def shrink(region: Region, splats: Splats, distance: float) -> Region:
    """Leave out all splats within a distance, in world units, of what is outside; weights become 0 or 1."""
    return region._changed(splats, shrink_region, distance, by="shrink", distance=distance)


def largest(region: Region, splats: Splats) -> Region:
    """Keep the piece that has most splats; weights become 0 or 1."""
    return region._changed(splats, keep_largest, by="largest")


def render_region(region: Region, splats: Splats, cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Masks of views, 1 where all that a pixel shows belongs to the region, on the levels of a file."""
    masks = render_masks(splats, cameras, region.weights.to(splats.means.device))
    return quantize(torch.where(masks < FAINT, 0.0, masks))
