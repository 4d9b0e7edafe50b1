"""The training set of the miniature: rendered pictures with their descriptions, in shards on disk.

Descriptions come from the `train` split only; captions are worded afresh at each use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from torch import Tensor

from restage.records import Progress, derive_seed, read_json, to_plain, write_atomically, write_json
from restage.world.capture import sample_camera
from restage.world.grammar import Description, SceneObject, caption_of, sample_description
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.render import render_view

__all__ = ["PictureScene", "Pictures", "make_pictures", "picture_scene", "render_pictures"]

SHARD_SIZE = 500
NUM_OBJECTS = (1, 2, 2, 3, 3)
"""How many objects the scenes are laid out with, in turn. Which word belongs to which object can only be learned where
there are several; a single object is learned within the first thousands of steps."""
TAKEN_EVERY = 3
"""In every n-th shard one object was taken away from each scene. What is left keeps its place, beside the
middle, with free ground where something can be added; scenes as they are laid out have their objects around it."""


class PictureScene(NamedTuple):
    """The scene of a picture of the training set."""

    shown: Description
    laid_out: Description
    """The same, or with one object more; the camera is chosen for this one."""
    seed: int
    """Of the camera."""


def picture_scene(index: int, *, seed: int = 0) -> PictureScene:
    """Return the scene of a picture of the training set; it depends on nothing but the arguments."""
    item, count = derive_seed("picture", seed, index), NUM_OBJECTS[index % len(NUM_OBJECTS)]
    if index // SHARD_SIZE % TAKEN_EVERY < TAKEN_EVERY - 1:
        description = sample_description(item, num_objects=count)
        return PictureScene(description, description, item)
    laid_out = sample_description(item, num_objects=max(count, 2))
    taken = int(np.random.default_rng(derive_seed("taken", item)).integers(len(laid_out.objects)))
    left: tuple[SceneObject, ...] = tuple(o for i, o in enumerate(laid_out.objects) if i != taken)
    return PictureScene(replace(laid_out, objects=left), laid_out, item)


def render_pictures(scenes: Sequence[PictureScene], *, size: int = 128) -> tuple[Array, Array]:
    """Render one picture of each scene.

    Returns:
        Pictures (n, size, size, 3) uint8, and object ids (n, size / 8, size / 8) uint8 at the latent grid.
    """

    def render(scene: PictureScene) -> tuple[Array, Array]:
        view = render_view(scene.shown, sample_camera(scene.laid_out, scene.seed, size=size))
        image = (view.image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        return image, view.object_ids[4::8, 4::8].astype(np.uint8)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        images, ids = zip(*pool.map(render, scenes), strict=True)
    return np.stack(images), np.stack(ids)


def make_pictures(folder: Path, num_pictures: int, *, seed: int = 0) -> Iterator[Progress]:
    """Render the training set in shards of 500; shards that are there are kept."""
    for start in range(0, num_pictures, SHARD_SIZE):
        stem = folder / f"shard-{start // SHARD_SIZE:05d}"
        if not stem.with_suffix(".json").exists():
            scenes = [picture_scene(index, seed=seed) for index in range(start, start + SHARD_SIZE)]
            images, ids = render_pictures(scenes)
            with write_atomically(stem.with_suffix(".npy")) as temporary:
                np.save(temporary, images)
            with write_atomically(stem.with_suffix(".ids.npy")) as temporary:
                np.save(temporary, ids)
            write_json(stem.with_suffix(".json"), [to_plain(scene.shown) for scene in scenes])
        yield Progress(stage="pictures", done=min(start + SHARD_SIZE, num_pictures), total=num_pictures)


class Pictures:
    """The pictures of a folder, mapped from disk."""

    def __init__(self, folder: Path, num_pictures: int | None = None) -> None:
        """Open the shards that are finished; only the first `num_pictures` where given."""
        stems = [path.with_suffix("") for path in sorted(folder.glob("shard-*.json"))]
        stems = stems[: None if num_pictures is None else num_pictures // SHARD_SIZE]
        self.shards: list[UInt8[Array, "n size size 3"]] = [
            np.load(stem.with_suffix(".npy"), mmap_mode="r") for stem in stems
        ]
        self.object_ids = np.concatenate([np.load(stem.with_suffix(".ids.npy")) for stem in stems])
        self.descriptions = [
            Description.from_plain(item) for stem in stems for item in read_json(stem.with_suffix(".json"))
        ]

    def __len__(self) -> int:
        return len(self.descriptions)

    def images(self, indices: list[int]) -> Float[Tensor, "b 3 size size"]:
        """Pictures in [0, 1]."""
        chosen = np.stack([self.shards[i // SHARD_SIZE][i % SHARD_SIZE] for i in indices])
        return torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 255

    def chances(self, shares: Sequence[float]) -> Float[Tensor, " n"]:
        """Return the chance of each picture, so that those with one, two and three objects come in these shares."""
        counts = torch.tensor([len(description.objects) for description in self.descriptions])
        each = torch.tensor(shares) / torch.bincount(counts, minlength=len(shares) + 1)[1:].clamp(min=1)
        return each[counts - 1]

    def captions(self, indices: list[int], seed: int) -> list[str]:
        """Captions in the wording that the seed chooses; objects are named in the order in which they were placed."""
        return [caption_of(self.descriptions[i], derive_seed("wording", seed, i)) for i in indices]

    def captions_from_the_left(self, indices: list[int], seed: int) -> list[str]:
        """The same, but objects are named as they stand in the picture, from left to right."""
        ordered = [_from_the_left(self.descriptions[i], self.object_ids[i]) for i in indices]
        return [caption_of(d, derive_seed("wording", seed, i)) for d, i in zip(ordered, indices, strict=True)]


def _from_the_left(description: Description, object_ids: UInt8[Array, "size size"]) -> Description:
    """Return the same scene with its objects in the order of their middles in the picture, from the left."""
    columns = np.arange(object_ids.shape[1])[None, :].repeat(object_ids.shape[0], axis=0)
    cells = [object_ids == FIRST_OBJECT_ID + index for index in range(len(description.objects))]
    middles = [columns[mask].mean() if mask.any() else np.inf for mask in cells]
    return replace(description, objects=tuple(description.objects[i] for i in np.argsort(middles, kind="stable")))
