"""What the probe learns from: rendered pictures of any combination, also as the autoencoder gives them back, labeled.

Unlike the training set of the models, these scenes hold every combination of kind, color and pattern, none to four
objects and sometimes a kind twice, so that the probe can say what a bad picture shows. Called by training and tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer, UInt8
from numpy import ndarray as Array
from torch import Tensor

from restage.diffusion.backbone import Backbone
from restage.records import Progress, derive_seed, write_atomically
from restage.world.capture import sample_camera
from restage.world.description import COLORS, GROUNDS, KINDS, PATTERNS, TIMES, Description
from restage.world.render import render_view
from restage.world.second import sample_description

__all__ = [
    "FIRST_KIND_CLASS",
    "IGNORED",
    "MAX_COUNT",
    "MIN_VISIBLE_PX",
    "NUM_CELLS",
    "NUM_CLASSES",
    "Labels",
    "ProbePictures",
    "concatenate_labels",
    "label_of",
    "make_probe_pictures",
    "render_labeled",
    "render_many",
    "sample_free_description",
    "through_autoencoder",
    "to_unit",
]

IGNORED = -100
"""A label that neither the loss nor a score looks at (that of `torch.nn.functional.cross_entropy`)."""
FIRST_KIND_CLASS = 2
"""Classes of a cell: sky, ground, then the kinds."""
NUM_CLASSES = FIRST_KIND_CLASS + len(KINDS)
MAX_COUNT = 4
MIN_VISIBLE_PX = 150
"""Of 128x128: an object that shows fewer pixels is neither there nor not there, for training and scores alike. Of the
world's own pictures one in a thousand holds one, since cameras are drawn until every object shows."""
NUM_CELLS = 16
"""A side: the grid of the latents, and of the cross attention that word masks are made of."""
SHARD_SIZE = 250
LATENT_NOISE = 0.15
"""Largest standard deviation of the noise on latents before they are decoded: sampled latents are not exact either."""


class Labels(NamedTuple):
    """What a batch of pictures shows."""

    present: Int64[Array, "n kinds"]
    """1 where the kind is there, 0 where not, `IGNORED` where too little of it shows."""
    colors: Int64[Array, "n kinds"]
    """Index of the kind's color, of a pattern the first; `IGNORED` where it is not there, there in two colors, or in a
    color that no word names."""
    count: Int64[Array, " n"]
    """Number of objects, 0 to 4; `IGNORED` where too little of one shows."""
    ground: Int64[Array, " n"]
    time: Int64[Array, " n"]
    classes: Int64[Array, "n cells cells"]
    """What the middle of each cell shows: 0 sky, 1 ground, 2 and more the kinds."""
    patterns: Int64[Array, "n kinds"]
    """0 for no pattern, or 1 + its index; `IGNORED` where the kind is not there, or there in two looks."""

    def take(self, indices: Sequence[int]) -> Labels:
        """The labels of some pictures."""
        return Labels(*(column[list(indices)] for column in self))


def sample_free_description(seed: int) -> Description:
    """Sample a scene of 1 to 4 objects in which colors and kinds may come twice, as in a picture that went wrong."""
    rng = np.random.default_rng(derive_seed("free description", seed))
    count = (1, 1, 1, 2, 2, 2, 3, 3, 4)[int(rng.integers(9))]
    scene = sample_description(seed, num_objects=count, split="all", has_twins=bool(rng.uniform() < 0.5))
    colors = rng.integers(len(COLORS), size=count) if rng.uniform() < 0.4 else rng.permutation(len(COLORS))
    painted = [
        replace(item, color=COLORS[colors[i]]) if item.color in COLORS and not item.pattern else item
        for i, item in enumerate(scene.objects)
    ]
    return replace(scene, objects=tuple(painted))


def label_of(description: Description, object_ids: Integer[Array, "size size"]) -> Labels:
    """Label one picture (n = 1) from its scene and the ids of its pixels, or of the middles of its 16x16 cells."""
    size = object_ids.shape[0]
    step = size // NUM_CELLS
    visible = np.bincount(object_ids.ravel(), minlength=2 + len(description.objects))[2:]
    is_clear = visible >= MIN_VISIBLE_PX * size**2 / 128**2
    present = np.zeros(len(KINDS), np.int64)
    colors, patterns = np.full(len(KINDS), IGNORED), np.full(len(KINDS), IGNORED)
    kinds = [KINDS.index(item.kind) for item in description.objects]
    for kind in set(kinds):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        present[kind] = 1 if any(is_clear[i] for i in mine) else IGNORED
        if present[kind] == 1:
            told, drawn = ({getattr(description.objects[i], name) for i in mine} for name in ("color", "pattern"))
            if len(told) == 1 and told <= set(COLORS):
                colors[kind] = COLORS.index(told.pop())
            if len(drawn) == 1:
                patterns[kind] = ("", *PATTERNS).index(drawn.pop())
    count = len(kinds) if is_clear.all() else IGNORED
    class_of_id = np.array([0, 1, *(FIRST_KIND_CLASS + kind for kind in kinds)])
    middles = object_ids[step // 2 :: step, step // 2 :: step]
    return Labels(
        present[None],
        colors[None],
        np.array([count]),
        np.array([GROUNDS.index(description.ground)]),
        np.array([TIMES.index(description.time)]),
        class_of_id[middles][None],
        patterns[None],
    )


def render_labeled(seed: int) -> tuple[UInt8[Array, "128 128 3"], Labels]:
    """Render the free scene of a seed from a sampled camera; one of twenty is rendered without its objects."""
    description = sample_free_description(seed)
    camera = sample_camera(description, seed)
    if derive_seed("empty", seed) % 20 == 0:
        description = replace(description, objects=())
    view = render_view(description, camera)
    image = (view.image.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    return image, label_of(description, view.object_ids)


def to_unit(images_uint8: UInt8[Array, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(images_uint8)).permute(0, 3, 1, 2).float() / 255


def through_autoencoder(
    backbone: Backbone, images: Float[Tensor, "n 3 h w"], *, noise: Float[Tensor, " n"], seed: int
) -> Float[Tensor, "n 3 h w"]:
    """Encode and decode pictures, with noise of the given standard deviation on the latents."""
    generator = torch.Generator().manual_seed(derive_seed("latent noise", seed))
    latents = backbone.encode_images(images)
    drawn = torch.randn(latents.shape, generator=generator) * noise[:, None, None, None]
    return backbone.decode_latents(latents + drawn.to(latents)).cpu()


def make_probe_pictures(folder: Path, num_pictures: int, backbone: Backbone, *, seed: int = 0) -> Iterator[Progress]:
    """Render free scenes in shards of 250, each picture also as the autoencoder gives it back; what is there is kept.

    A shard is `shard-<number>.npy` (2, 250, 128, 128, 3), the renders and what became of them, and, written last,
    `shard-<number>.npz` with the labels.
    """
    for start in range(0, num_pictures, SHARD_SIZE):
        stem = folder / f"shard-{start // SHARD_SIZE:05d}"
        if not stem.with_suffix(".npz").exists():
            seeds = [derive_seed("probe picture", seed, start + i) for i in range(SHARD_SIZE)]
            images, labels = render_many(seeds)
            decoded = []
            for part in torch.arange(SHARD_SIZE).split(25):
                first = start + int(part[0])
                generator = torch.Generator().manual_seed(derive_seed("noise level", seed, first))
                levels = torch.rand(len(part), generator=generator) * LATENT_NOISE
                decoded.append(
                    through_autoencoder(backbone, to_unit(images[part.numpy()]), noise=levels, seed=seed + first)
                )
            softened = (torch.cat(decoded).permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
            with write_atomically(stem.with_suffix(".npy")) as temporary:
                np.save(temporary, np.stack([images, softened]))
            with write_atomically(stem.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **labels._asdict())  # pyright: ignore[reportArgumentType]
        yield Progress(stage="probe pictures", done=min(start + SHARD_SIZE, num_pictures), total=num_pictures)


def render_many(seeds: Sequence[int]) -> tuple[UInt8[Array, "n 128 128 3"], Labels]:
    """Render one labeled picture per seed."""
    images, labels = zip(*(render_labeled(seed) for seed in seeds), strict=True)
    return np.stack(images), concatenate_labels(labels)


class ProbePictures:
    """The labeled pictures of a folder, mapped from disk."""

    def __init__(self, folder: Path, num_pictures: int) -> None:
        """Open the first `num_pictures`, which must have been made."""
        stems = [folder / f"shard-{number:05d}" for number in range(num_pictures // SHARD_SIZE)]
        self.shards: list[UInt8[Array, "2 n 128 128 3"]] = [
            np.load(stem.with_suffix(".npy"), mmap_mode="r") for stem in stems
        ]
        self.labels = concatenate_labels([_load_labels(stem.with_suffix(".npz")) for stem in stems])

    def __len__(self) -> int:
        return len(self.labels.count)

    def images(self, indices: Sequence[int], *, is_soft: Sequence[bool]) -> UInt8[Array, "n 128 128 3"]:
        """Pictures as rendered, or as the autoencoder gave them back."""
        return np.stack(
            [self.shards[i // SHARD_SIZE][int(soft), i % SHARD_SIZE] for i, soft in zip(indices, is_soft, strict=True)]
        )


def _load_labels(path: Path) -> Labels:
    with np.load(path) as stored:
        return Labels(**{name: stored[name] for name in Labels._fields})


def concatenate_labels(parts: Sequence[Labels]) -> Labels:
    """Join the labels of several batches."""
    return Labels(*(np.concatenate(column) for column in zip(*parts, strict=True)))
