"""The fixed held-out split: captions with noise seeds, rendered pictures, and edits with their exact truth.

All of it comes from seeds of its own names, so no training sees it; `world_seed` moves it to other worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from miniature.pictures import picture_scene
from miniature.probe_pictures import Labels, concatenate_labels, label_of
from restage.records import PromptPair, derive_seed
from restage.scenes.cameras import Cameras
from restage.world.capture import change_mask, sample_camera, sample_pictured_edit
from restage.world.description import Description, Edit, Place
from restage.world.editions import EDITIONS
from restage.world.grammar import caption_of
from restage.world.render import render_view
from restage.world.second import prompt_pair_of, sample_place

__all__ = ["CASE_KINDS", "Captioned", "Case", "Rendered", "captions", "edit_cases", "is_in_training"]
__all__ += ["render_captioned"]

CASE_KINDS = ("recolour", "ground", "time", "reshape", "remove", "add", "move", "pattern", "resize")
"""Kinds of edit, in the order in which they come in turn."""


@dataclass(frozen=True)
class Captioned:
    """A caption to sample a picture of, and the scene that it describes."""

    description: Description
    caption: str
    seed: int
    """Of the noise, and of the camera where the scene is rendered."""
    place: Place | None = None
    """What the caption says about a place."""


@dataclass(frozen=True)
class Rendered:
    """Renders of captioned scenes, and what they show."""

    items: tuple[Captioned, ...]
    images: Float[Tensor, "n 3 128 128"]
    labels: Labels


@dataclass(frozen=True)
class Case:
    """An edit of an unseen scene, seen by one camera."""

    edit: Edit
    prompt: PromptPair
    before: Float[Tensor, "3 128 128"]
    after: Float[Tensor, "3 128 128"]
    mask: Float[Tensor, "128 128"]
    camera: Cameras


def captions(
    world_seed: int,
    count: int,
    *,
    split: str = "train",
    edition: int = 2,
    fits: Callable[[Captioned], bool] | None = None,
) -> list[Captioned]:
    """Captions of new scenes: a third with one object, half with two, a sixth with three.

    Left and right are true of the picture that `render_captioned` makes.

    Args:
        world_seed: Chooses other worlds for all of them.
        count: How many; a smaller number gives the first of a larger one.
        split: `train` has the combinations of kind and color that training shows, `unseen` only the others.
        edition: Of the world: the first has no places, patterns and colors without a name.
        fits: Which captions to take; the others are passed over.
    """
    found, index = [], 0
    while len(found) < count:
        seed = derive_seed("miniature captions", world_seed, index)
        scene = EDITIONS[edition].sample_description(seed, split=split)
        place = sample_place(scene, seed, sample_camera(scene, seed)) if edition > 1 else None
        item = Captioned(scene, caption_of(scene, seed, place), seed, place)
        if fits is None or fits(item):
            found.append(item)
        index += 1
    return found


def render_captioned(items: list[Captioned]) -> Rendered:
    """Render the scene of each caption from a sampled camera."""
    views = [render_view(item.description, sample_camera(item.description, item.seed)) for item in items]
    labels = [label_of(item.description, view.object_ids) for item, view in zip(items, views, strict=True)]
    images = torch.from_numpy(np.stack([view.image for view in views]))
    return Rendered(tuple(items), images, concatenate_labels(labels))


def is_in_training(items: list[Captioned], *, num_pictures: int) -> list[bool]:
    """Which scenes equal one of the first `num_pictures` that `restage miniature train pictures` renders."""
    seen = {picture_scene(index).shown for index in range(num_pictures)}
    return [item.description in seen for item in items]


def edit_cases(world_seed: int, count: int) -> Iterator[Case]:
    """Edits of all kinds in turn, with exact pictures before and after."""
    for index in range(count):
        seed = derive_seed("miniature benchmark", world_seed, index)
        edit, camera = sample_pictured_edit(CASE_KINDS[index % len(CASE_KINDS)], seed)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = torch.from_numpy(change_mask(before, after))
        prompt = prompt_pair_of(edit, seed, camera)
        yield Case(edit, prompt, torch.from_numpy(before), torch.from_numpy(after), mask, camera)
