"""Regions of a scene as ids: which pixels of its views belong to one thing, as control branches take it."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.regions.files import list_regions, read_region
from restage.regions.masks import render_masks
from restage.scenes.cameras import Cameras
from restage.scenes.splats import Splats

__all__ = ["render_ids"]


def render_ids(
    scene: Path, splats: Splats, cameras: Cameras, depths: Float[Tensor, "n h w"]
) -> tuple[Int[Tensor, "n h w"], int]:
    """Return the ids that views of a scene's folder show, and the number of things; 0 things where it has no regions.

    Regions that are called `sky` and `ground` are that, 0 and 1, others are things from 2 on. What is in no region is
    ground where there is any depth, else sky.
    """
    run, name = scene.resolve().parents[1], scene.resolve().name
    regions = list_regions(run, name)
    things = [region for region in regions if region not in ("sky", "ground")]
    ids = torch.isfinite(depths).long()
    for region in regions:
        weights = read_region(run, name, region, splats).weights
        number = 2 + things.index(region) if region in things else int(region == "ground")
        ids[render_masks(splats, cameras, weights) > 0.5] = number
    return ids, len(things)
