"""The miniature's control branch: depth and ids, exact from the world, steer its text-to-image model."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from miniature.pictures import Pictures, picture_scene
from miniature.text_to_image import SHARES, encode_pictures
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.conditions import NUM_SLOTS, slots_of
from restage.diffusion.config import TrainingConfig
from restage.records import InputError, Progress, content_id, derive_seed, write_atomically
from restage.run.models import models_in
from restage.train.config import BranchConfig
from restage.train.control import BranchBatch, BranchData, drop_conditions, train_branch
from restage.world.render import NEAR, layout_of, render_view

__all__ = ["CONDITIONS", "RECIPE", "Layouts", "base_of", "prepare_control", "render_layouts"]
__all__ += ["train_control"]

RECIPE = TrainingConfig(num_steps=2500, batch_size=16, learning_rate=3e-4, num_warmup_steps=50, ema_decay=0.996)
CONDITIONS = ("depth", "ids")
RENDERED_AT_ONCE = 100


def base_of(folder: Path) -> Path:
    """Return the text-to-image model that a branch is trained for: that of the training folder, or the shipped one."""
    own = folder / "text_to_image"
    return own if (own / "unet" / "config.json").is_file() else models_in().text_to_image


def render_layouts(folder: Path, pictures: Pictures) -> Iterator[Progress]:
    """Render depth and ids of all pictures beside them, in shards of `.layout.npy`; those that are there are kept.

    Each is uint8 "n 2 size size": inverse depth in 255 steps, and ids.

    Raises:
        InputError: the pictures are of other scenes than the recipe's.
    """
    done, size = 0, pictures.shards[0].shape[1]
    for number, shard in enumerate(pictures.shards):
        path = folder / f"shard-{number:05d}.layout.npy"
        if not path.exists():
            parts = []
            for start in range(done, done + len(shard), RENDERED_AT_ONCE):
                indices = range(start, min(start + RENDERED_AT_ONCE, done + len(shard)))
                with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                    parts += pool.map(lambda index: _render(pictures, index, size), indices)
                yield Progress(stage="layouts", done=indices[-1] + 1, total=len(pictures))
            with write_atomically(path) as temporary:
                np.save(temporary, np.stack(parts))
        done += len(shard)


def _render(pictures: Pictures, index: int, size: int) -> UInt8[np.ndarray, "2 size size"]:
    scene = picture_scene(index)
    if scene.shown != pictures.descriptions[index]:
        raise InputError(f"picture {index} shows another scene than the recipe's; make the pictures anew")
    view = render_view(scene.shown, scene.camera(size=size))
    depth = layout_of(view)["depth"][0].numpy()
    return np.stack([(depth * 255 + 0.5).astype(np.uint8), view.object_ids.astype(np.uint8)])


class Layouts:
    """Depth and ids of the pictures of a folder, mapped from disk."""

    def __init__(self, folder: Path, pictures: Pictures) -> None:
        """Open the shards of `render_layouts`."""
        count = len(pictures.shards)
        self.shards = [np.load(folder / f"shard-{number:05d}.layout.npy", mmap_mode="r") for number in range(count)]

    def truth(self, indices: list[int]) -> tuple[Float[Tensor, "b size size"], Int[Tensor, "b size size"]]:
        """Return inverse depth and ids of pictures."""
        size = len(self.shards[0])
        found = torch.from_numpy(np.stack([self.shards[i // size][i % size] for i in indices]))
        return found[:, 0].float() / 255, found[:, 1].long()

    def conditions(self, indices: list[int], generator: torch.Generator) -> Float[Tensor, "b channels size size"]:
        """Return the conditions of pictures; which slot an object has is drawn anew, so that it tells no kind."""
        rows = []
        for depth, ids in zip(*self.truth(indices), strict=True):
            order = torch.randperm(NUM_SLOTS, generator=generator).tolist()
            rows.append(torch.cat([depth[None], slots_of(ids, order)]))
        return torch.stack(rows)


def train_control(
    folder: Path,
    pictures: Pictures,
    training: TrainingConfig = RECIPE,
    *,
    config: BranchConfig | None = None,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train a control branch for a text-to-image model, and save it as `<folder>/<config.name>`.

    Command: `restage miniature train control --num-pictures 36000`; latents and layouts are made once.

    Args:
        folder: Of the models.
        pictures: The training set, in the folder `pictures` beside.
        training: How long and how fast.
        config: What the branch is.
        start: The text-to-image model; None for that of the folder, or the one that comes with the package.
        device: Where to train, such as `cuda`.
    """
    config = config or BranchConfig()
    backbone, data = yield from prepare_control(folder, pictures, training, config, start=start, device=device)
    state = folder / "state" / config.name
    yield from train_branch(backbone, data, config, training=training, state=state, folder=folder / config.name)


def prepare_control(
    folder: Path,
    pictures: Pictures,
    training: TrainingConfig,
    config: BranchConfig,
    *,
    start: Path | None = None,
    device: str = "cpu",
) -> Generator[Progress, None, tuple[Backbone, BranchData]]:
    """Load the model that a branch is for, and make its training set; the arguments are those of `train_control`."""
    base = start or base_of(folder)
    backbone = load_backbone(base, device)
    latents = yield from encode_pictures(folder, pictures, backbone, base)
    yield from render_layouts(folder.parent / "pictures", pictures)
    return backbone, _control_data(pictures, Layouts(folder.parent / "pictures", pictures), latents, config, training)


def _control_data(
    pictures: Pictures, layouts: Layouts, latents: Tensor, config: BranchConfig, training: TrainingConfig
) -> BranchData:
    """Return the training set of the branch: cached latents and layouts, captions worded afresh at each use."""
    chances = pictures.chances(SHARES)

    def batch(step: int, generator: torch.Generator) -> BranchBatch:
        chosen = torch.multinomial(chances, training.batch_size, replacement=True, generator=generator).tolist()
        captions = pictures.captions_from_the_left(chosen, derive_seed(training.seed, "captions", step))
        has_text = torch.rand(len(chosen), generator=generator) >= config.drop_text
        conditions = layouts.conditions(chosen, generator)
        conditions, is_steered = drop_conditions(conditions, CONDITIONS, config, generator)
        captions = [text if kept else "" for text, kept in zip(captions, has_text.tolist(), strict=True)]
        return BranchBatch(latents[chosen].float(), captions, conditions, is_steered)

    return BranchData(CONDITIONS, content_id("pictures", len(pictures)), batch, near=NEAR)
