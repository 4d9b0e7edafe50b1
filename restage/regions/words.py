"""Regions by words: a text-to-image backbone's word maps where it knows the scene's world, else a segmenter's masks."""

from __future__ import annotations

import re

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.segment import picture_features
from restage.records import InputError
from restage.regions.attention_masks import attention_masks
from restage.regions.growing import SplatGraph, grow_from, spread_views
from restage.regions.masks import keep_largest, lift_features, lift_masks
from restage.regions.region import Region
from restage.regions.segmenters import Segmenter
from restage.scenes.capture import Capture
from restage.scenes.splats import Splats

__all__ = ["region_by_backbone", "region_by_segmenter", "unet_features"]

NUM_FEATURES = 8
NOISE_LEVEL = 0.1
"""Share of the noise schedule at which word maps are read: at 0.3 those of a ball light up on a tree beside it, too."""
MEANT = 0.8
"""Splats whose word map reaches this share of the greatest are what the words mean, before they are grown."""
AGREED = 0.7
"""A splat belongs to what a segmenter finds if so much of what views show of it does: what a thing stands on is taken
for a part of it in some views."""
NO_CONTENT = {"a", "an", "the", "of", "on", "in", "at", "and", "with", "it", "this", "that"}


def unet_features(splats: Splats, capture: Capture, backbone: Backbone) -> Float[Tensor, "n 8"]:
    """The main components of the UNet's queries in some views (`picture_features`), lifted to the splats."""
    views = spread_views(capture)
    maps = picture_features(backbone, capture.images[views]).float()
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2)
    flat = flat - flat.mean(dim=0)
    # The directions of greatest variance; signs do not matter, for only distances are used.
    _, directions = torch.linalg.eigh(flat.T @ flat)
    low = torch.einsum("nchw,cd->ndhw", maps - maps.mean(dim=(0, 2, 3), keepdim=True), directions[:, -NUM_FEATURES:])
    size = (capture.cameras.height, capture.cameras.width)
    return lift_features(splats, capture.cameras[views], functional.interpolate(low, size, mode="bilinear"))


def region_by_backbone(
    splats: Splats, capture: Capture, words: str, *, backbone: Backbone, graph: SplatGraph, caption: str = ""
) -> Region:
    """Make the region of what words mean, such as "the red cube", by a backbone that knows the scene's world.

    Where the words are attended to in several views is lifted to the splats; from the piece that is meant most the
    region is grown. A caption of the whole scene, which has to hold the words, helps to tell similar things apart.
    """
    content = [word for word in re.findall(r"[A-Za-z0-9-]+", words.lower()) if word not in NO_CONTENT]
    caption = caption.strip() or words
    known = set(re.findall(r"[A-Za-z0-9-]+", caption.lower()))
    if not content or not set(content) <= known:
        raise InputError(f"expected words that name something, all of them in the caption, got {words!r}")
    views = spread_views(capture)
    maps = attention_masks(backbone, capture.images[views], caption.lower(), content, noise_level=NOISE_LEVEL)
    lifted = lift_masks(splats, capture.cameras[views], maps).cpu()
    meant = (lifted >= MEANT * lifted.max()).nonzero()[:, 0].numpy()
    _, pieces = connected_components(graph.bonds[meant][:, meant], directed=False)
    main = np.bincount(pieces, weights=lifted.numpy()[meant]).argmax()
    weights = grow_from(graph, torch.from_numpy(meant[pieces == main]))
    return Region.of(splats, weights, by="words", words=words, caption=caption, views=len(views), means="word maps")


def region_by_segmenter(splats: Splats, capture: Capture, words: str, segmenter: Segmenter) -> Region:
    """Make the region of what a segmenter finds in most of some views; its largest piece."""
    views = spread_views(capture)
    masks = segmenter.segment(capture.images[views], words)
    lifted = lift_masks(splats, capture.cameras[views], masks.to(splats.means.device))
    weights = keep_largest(splats, (lifted >= AGREED).float())
    if not bool((weights > 0).any()):
        raise InputError(f"{segmenter.name} finds no '{words}' that most of {len(views)} views agree on")
    made = {"by": "words", "words": words, "views": len(views), "means": segmenter.name}
    if not segmenter.reads_words:
        made["note"] = "the most conspicuous thing in the views; the words are only a label"
    return Region.of(splats, weights, **made)
