"""The training set of the miniature: rendered pictures with their scenes, in shards on disk.

Scenes are those of the world's second edition, from its `train` split only; captions are worded afresh at each use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from torch import Tensor

from restage.records import InputError, Progress, derive_seed, from_plain, read_json, write_atomically, write_json
from restage.scenes.cameras import Cameras
from restage.world import grammar, second
from restage.world.capture import sample_camera
from restage.world.description import Description, Place
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.places import carriers, places_of
from restage.world.render import render_view

__all__ = ["PictureScene", "Pictures", "make_pictures", "picture_scene", "render_pictures"]

EDITION = 2
"""Edition of the world, as shards state it; those of the first state none."""
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

    def camera(self, *, size: int = 128) -> Cameras:
        """Return the one camera that the picture is taken with."""
        return sample_camera(self.laid_out, self.seed, size=size)


def picture_scene(index: int, *, seed: int = 0) -> PictureScene:
    """Return the scene of a picture of the training set; it depends on nothing but the arguments."""
    item, count = derive_seed("picture", seed, index), NUM_OBJECTS[index % len(NUM_OBJECTS)]
    if index // SHARD_SIZE % TAKEN_EVERY < TAKEN_EVERY - 1:
        description = second.sample_description(item, num_objects=count)
        return PictureScene(description, description, item)
    laid_out = second.sample_description(item, num_objects=max(count, 2))
    # What stands on another object would be left in the air without it.
    free = sorted(set(range(len(laid_out.objects))) - carriers(laid_out))
    taken = free[int(np.random.default_rng(derive_seed("taken", item)).integers(len(free)))]
    left = tuple(o for i, o in enumerate(laid_out.objects) if i != taken)
    return PictureScene(replace(laid_out, objects=left), laid_out, item)


class Rendered(NamedTuple):
    """Pictures of some scenes."""

    images: UInt8[Array, "n size size 3"]
    object_ids: UInt8[Array, "n cells cells"]
    """What the middles of the latent grid's cells show."""
    places: list[list[Place]]
    """All that holds in each picture, left and right included."""


def render_pictures(scenes: Sequence[PictureScene], *, size: int = 128) -> Rendered:
    """Render one picture of each scene."""

    def render(scene: PictureScene) -> tuple[Array, Array, list[Place]]:
        camera = scene.camera(size=size)
        view = render_view(scene.shown, camera)
        image = (view.image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        return image, view.object_ids[4::8, 4::8].astype(np.uint8), places_of(scene.shown, camera)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        images, ids, places = zip(*pool.map(render, scenes), strict=True)
    return Rendered(np.stack(images), np.stack(ids), list(places))


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What a shard's JSON says about its pictures."""

    edition: int
    scenes: list[Description]
    places: list[list[Place]]


def _read_shard(path: Path) -> _Shard:
    plain = read_json(path)
    # In the first edition a shard was the list of its scenes.
    if not isinstance(plain, dict) or plain.get("edition") != EDITION:
        raise InputError(
            f"{path} describes pictures of another edition of the world than {EDITION}, which models are trained on; "
            "remove the pictures' folder, or train in another --folder"
        )
    return from_plain(plain, _Shard, where=path)


def make_pictures(folder: Path, num_pictures: int, *, seed: int = 0) -> Iterator[Progress]:
    """Render the training set in shards of 500; shards that are there are kept.

    Raises:
        InputError: shards that are there are of another edition of the world.
    """
    for path in folder.glob("shard-*.json"):
        _read_shard(path)
    for start in range(0, num_pictures, SHARD_SIZE):
        stem = folder / f"shard-{start // SHARD_SIZE:05d}"
        if not stem.with_suffix(".json").exists():
            scenes = [picture_scene(index, seed=seed) for index in range(start, start + SHARD_SIZE)]
            made = render_pictures(scenes)
            for ending, array in ((".npy", made.images), (".ids.npy", made.object_ids)):
                with write_atomically(stem.with_suffix(ending)) as temporary:
                    np.save(temporary, array)
            shard = _Shard(edition=EDITION, scenes=[scene.shown for scene in scenes], places=made.places)
            write_json(stem.with_suffix(".json"), shard)
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
        found = [_read_shard(stem.with_suffix(".json")) for stem in stems]
        self.descriptions = [scene for shard in found for scene in shard.scenes]
        self.places = [places for shard in found for places in shard.places]
        """What a caption can say about places, picture by picture."""

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

    def place(self, index: int, seed: int) -> Place | None:
        """Return the place that the caption of a picture says in the wording that the seed chooses, if it says one."""
        return second.choose_place(self.places[index], derive_seed("wording", seed, index))

    def _caption(self, index: int, scene: Description, seed: int) -> str:
        return grammar.caption_of(scene, derive_seed("wording", seed, index), self.place(index, seed))

    def captions(self, indices: list[int], seed: int) -> list[str]:
        """Captions in the wording that the seed chooses; objects are named in the order in which they were placed.

        Some say the place of an object, which is then named last, with what tells its place.
        """
        return [self._caption(i, self.descriptions[i], seed) for i in indices]

    def captions_from_the_left(self, indices: list[int], seed: int) -> list[str]:
        """The same, but objects are named as they stand in the picture, from left to right."""
        ordered = [_from_the_left(self.descriptions[i], self.object_ids[i]) for i in indices]
        return [self._caption(i, scene, seed) for i, scene in zip(indices, ordered, strict=True)]


def _from_the_left(description: Description, object_ids: UInt8[Array, "size size"]) -> Description:
    """Return the same scene with its objects in the order of their middles in the picture, from the left."""
    columns = np.arange(object_ids.shape[1])[None, :].repeat(object_ids.shape[0], axis=0)
    cells = [object_ids == FIRST_OBJECT_ID + index for index in range(len(description.objects))]
    middles = [columns[mask].mean() if mask.any() else np.inf for mask in cells]
    return replace(description, objects=tuple(description.objects[i] for i in np.argsort(middles, kind="stable")))
