"""The fixed held-out split: captions with noise seeds, rendered pictures, and edits with their exact truth.

All of it comes from seeds of its own names, so no training sees it; `world_seed` moves it to other worlds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from miniature.pictures import picture_scene
from miniature.probe_pictures import Labels, concatenate_labels, label_of
from restage.records import PromptPair, derive_seed
from restage.scenes.cameras import Cameras
from restage.world.capture import change_mask, sample_camera
from restage.world.grammar import (
    EDIT_KINDS,
    Description,
    Edit,
    caption_of,
    possible_kinds,
    prompt_pair_of,
    sample_description,
    sample_edit,
)
from restage.world.render import render_view

__all__ = ["Captioned", "Case", "Rendered", "captions", "edit_cases", "is_in_training", "render_captioned"]


@dataclass(frozen=True)
class Captioned:
    """A caption to sample a picture of, and the scene that it describes."""

    description: Description
    caption: str
    seed: int
    """Of the noise, and of the camera where the scene is rendered."""


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


def captions(world_seed: int, count: int, *, split: str = "train") -> list[Captioned]:
    """Captions of new scenes; half of them with one object, a third with two, a sixth with three.

    Args:
        world_seed: Chooses other worlds for all of them.
        count: How many; a smaller number gives the first of a larger one.
        split: `train` has the combinations of kind and color that training shows, `unseen` only the others.
    """
    found = []
    for index in range(count):
        seed = derive_seed("miniature captions", world_seed, index)
        description = sample_description(seed, split=split)
        found.append(Captioned(description, caption_of(description, seed), seed))
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


def _scene_for(kind: str, world_seed: int, index: int) -> tuple[int, Description]:
    """Return the first scene of a case that allows this edit (an object without room to grow cannot be resized)."""
    for attempt in itertools.count():
        names = (world_seed, index, attempt) if attempt else (world_seed, index)
        seed = derive_seed("miniature benchmark", *names)
        description = sample_description(seed, num_objects=2 if kind == "remove" else 1 + index // 7 % 2)
        if kind in possible_kinds(description):
            return seed, description
    raise AssertionError("a count does not end")


def edit_cases(world_seed: int, count: int) -> Iterator[Case]:
    """Edits of all kinds in turn, with exact pictures before and after."""
    for index in range(count):
        kind = EDIT_KINDS[index % len(EDIT_KINDS)]
        seed, description = _scene_for(kind, world_seed, index)
        edit = sample_edit(description, seed, kind=kind)
        camera = sample_camera(description, seed)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = torch.from_numpy(change_mask(before, after))
        prompt = prompt_pair_of(edit, seed)
        yield Case(edit, prompt, torch.from_numpy(before), torch.from_numpy(after), mask, camera)
