"""The training set of the miniature: rendered pictures with their descriptions, in shards on disk.

Descriptions come from the `train` split only; captions are written anew at each use, in changing words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from torch import Tensor

from restage.records import Progress, derive_seed, read_json, to_plain, write_atomically, write_json
from restage.world.capture import sample_camera
from restage.world.grammar import Description, caption_of, sample_description
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.render import render_view

__all__ = ["Pictures", "make_pictures", "render_pictures", "seed_and_count"]

SHARD_SIZE = 500
NUM_OBJECTS = (1, 2, 2, 3, 3)
"""How many objects the scenes show, in turn. Which word belongs to which object can only be learned where there are
several; a single object is learned within the first thousands of steps."""


def seed_and_count(index: int, *, seed: int = 0) -> tuple[int, int]:
    """Seed and number of objects of a picture of the training set."""
    return derive_seed("picture", seed, index), NUM_OBJECTS[index % len(NUM_OBJECTS)]


def render_pictures(
    seeds: Sequence[int], *, split: str = "train", size: int = 128, num_objects: Sequence[int | None] | None = None
) -> tuple[Array, Array, list[Description]]:
    """Render one picture a seed, with a number of objects of its own where they are given.

    Returns:
        Pictures (n, size, size, 3) uint8, object ids (n, size / 8, size / 8) uint8 at the latent grid, descriptions.
    """

    def render(seed: int, count: int | None) -> tuple[Array, Array, Description]:
        description = sample_description(seed, num_objects=count, split=split)
        view = render_view(description, sample_camera(description, seed, size=size))
        image = (view.image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        return image, view.object_ids[4::8, 4::8].astype(np.uint8), description

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        images, ids, descriptions = zip(*pool.map(render, seeds, num_objects or [None] * len(seeds)), strict=True)
    return np.stack(images), np.stack(ids), list(descriptions)


def make_pictures(folder: Path, num_pictures: int, *, seed: int = 0) -> Iterator[Progress]:
    """Render the training set in shards of 500; shards that are there are kept."""
    for start in range(0, num_pictures, SHARD_SIZE):
        stem = folder / f"shard-{start // SHARD_SIZE:05d}"
        if not stem.with_suffix(".json").exists():
            indices = range(start, start + SHARD_SIZE)
            seeds, counts = zip(*(seed_and_count(index, seed=seed) for index in indices), strict=True)
            images, ids, descriptions = render_pictures(seeds, num_objects=counts)
            with write_atomically(stem.with_suffix(".npy")) as temporary:
                np.save(temporary, images)
            with write_atomically(stem.with_suffix(".ids.npy")) as temporary:
                np.save(temporary, ids)
            write_json(stem.with_suffix(".json"), [to_plain(description) for description in descriptions])
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

    def captions(self, indices: list[int], seed: int) -> list[str]:
        """Captions in the wording that the seed chooses; objects are named in the order in which they were placed."""
        return [caption_of(self.descriptions[i], derive_seed("wording", seed, i)) for i in indices]

    def captions_from_the_left(self, indices: list[int], seed: int) -> list[str]:
        """The same, but objects are named as they stand in the picture, from left to right."""
        ordered = [_from_the_left(self.descriptions[i], self.object_ids[i]) for i in indices]
        return [caption_of(d, derive_seed("wording", seed, i)) for d, i in zip(ordered, indices, strict=True)]


def _from_the_left(description: Description, object_ids: UInt8[Array, "size size"]) -> Description:
    """The same scene with its objects in the order in which their middles stand in the picture."""
    columns = np.arange(object_ids.shape[1])[None, :].repeat(object_ids.shape[0], axis=0)
    cells = [object_ids == FIRST_OBJECT_ID + index for index in range(len(description.objects))]
    middles = [columns[mask].mean() if mask.any() else np.inf for mask in cells]
    return replace(description, objects=tuple(description.objects[i] for i in np.argsort(middles, kind="stable")))
