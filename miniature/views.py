"""The add-on that lets the miniature's text-to-image model make several views of a scene at once.

It learns from rings of rendered views, whose latents are computed once; the model's own weights stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from miniature.control import base_of
from miniature.text_to_image import cache_of, loss_of_groups
from restage.diffusion.backbone import Backbone, load_backbone, save_half
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import explicit_attention, train
from restage.diffusion.view_attention import build_view_attention, load_view_attention, viewing
from restage.generate.rig import rays_of
from restage.records import InputError, Progress, derive_seed, write_atomically
from restage.run.models import folder_sha256
from restage.scenes.cameras import Cameras
from restage.world.capture import ring_cameras
from restage.world.description import Description
from restage.world.render import render_view
from restage.world.second import caption_of, sample_description

__all__ = ["NUM_RINGS", "RECIPE", "Rings", "make_rings", "ring_scene", "train_views"]

RECIPE = TrainingConfig(num_steps=6000, batch_size=32, learning_rate=3e-4, num_warmup_steps=100, ema_decay=0.998)
"""A batch is counted in views."""
NUM_RINGS, SHARD_SIZE = 4000, 50
NUM_VIEWS = 8
"""Views of a ring; a step takes all of them, or half of them, so that the add-on serves any number from 4 to 8."""
DROP_TEXT = 0.1
NUM_OBJECTS = (1, 1, 2, 2, 3)
"""How many objects the scenes have, in turn."""


def ring_scene(index: int, *, seed: int = 0) -> tuple[Description, Cameras]:
    """The scene of a ring, of the split `train`, and its cameras, whose first stands anywhere around it."""
    item = derive_seed("ring of views", seed, index)
    scene = sample_description(item, num_objects=NUM_OBJECTS[index % len(NUM_OBJECTS)])
    return scene, ring_cameras(scene, NUM_VIEWS, seed=item)


def make_rings(folder: Path, backbone: Backbone, num_rings: int, *, seed: int = 0) -> Iterator[Progress]:
    """Render rings and encode them, in shards of 50 that hold latents alone; shards that are there are kept."""
    for first in range(0, num_rings, SHARD_SIZE):
        path = folder / f"shard-{first // SHARD_SIZE:05d}.npy"
        if not path.exists():
            latents = []
            for index in range(first, first + SHARD_SIZE):
                scene, cameras = ring_scene(index, seed=seed)
                views = np.stack([render_view(scene, cameras[view]).image for view in range(NUM_VIEWS)])
                latents.append(backbone.encode_images(torch.from_numpy(views)).half().cpu().numpy())
            with write_atomically(path) as temporary:
                np.save(temporary, np.stack(latents))
        yield Progress(stage="rings", done=min(first + SHARD_SIZE, num_rings), total=num_rings)


class Rings:
    """The rings of a folder, their latents mapped from disk."""

    def __init__(self, folder: Path, num_rings: int, *, seed: int = 0) -> None:
        """Open the first of them, which must have been made."""
        names = [folder / f"shard-{number:05d}.npy" for number in range(-(-num_rings // SHARD_SIZE))]
        self.shards = [np.load(path, mmap_mode="r") for path in names]
        self.num_rings, self.seed = num_rings, seed

    def __len__(self) -> int:
        return self.num_rings

    def latents(self, index: int, views: list[int]) -> Float[Tensor, "v c h w"]:
        """Latents of some views of a ring."""
        return torch.from_numpy(self.shards[index // SHARD_SIZE][index % SHARD_SIZE, views]).float()

    def scene(self, index: int) -> tuple[Description, Cameras]:
        """A ring's scene and cameras."""
        return ring_scene(index, seed=self.seed)


def train_views(
    folder: Path,
    config: TrainingConfig = RECIPE,
    *,
    num_rings: int = NUM_RINGS,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train it on the autoencoder's latents of rings, and save `<folder>/views` in half precision.

    v-prediction as the model's own; all views of a scene have one noise level. Rings are rendered and encoded first, to
    `<folder>/state/rings-<model>`.
    Command: `restage miniature train views`. Rings come at about four a second on one core of an EPYC; for the cost of
    a step see docs/generate.md.

    Args:
        folder: Of the models.
        config: How long and how fast.
        num_rings: Scenes that are rendered, from eight sides each.
        start: An add-on of the same UNet that training goes on from; None for one that changes nothing.
        device: Where to train, such as `cuda`.
    """
    base = base_of(folder)
    if num_rings < 1:
        raise InputError(f"expected at least one ring, got {num_rings}")
    backbone = load_backbone(base, device)
    cache = cache_of(folder, "rings", base, config.seed)
    yield from make_rings(cache, backbone, num_rings, seed=config.seed)
    rings = Rings(cache, num_rings, seed=config.seed)
    torch.manual_seed(config.seed)  # initial weights only
    if start is None:
        add_on = build_view_attention(backbone.unet, num_views=NUM_VIEWS)
    else:
        add_on = load_view_attention(start, backbone.unet, device).requires_grad_(True)
    add_on.to(device)  # pyright: ignore[reportCallIssue, reportArgumentType]
    side = int(backbone.unet.config["sample_size"])

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        num_views = NUM_VIEWS if step % 2 else NUM_VIEWS // 2
        count = max(1, config.batch_size // num_views)
        chosen = torch.randint(len(rings), (count,), generator=generator).tolist()
        # Any of the ring may be the first, whose azimuth counts as 0.
        views = [torch.randperm(NUM_VIEWS, generator=generator)[:num_views].tolist() for _ in chosen]
        scenes = [rings.scene(index) for index in chosen]
        rays = torch.stack([rays_of(cameras[some], side) for (_, cameras), some in zip(scenes, views, strict=True)])
        clean = torch.cat([rings.latents(index, some) for index, some in zip(chosen, views, strict=True)])
        dropped = (torch.rand(count, generator=generator) < DROP_TEXT).tolist()
        captions = [
            "" if drop else caption_of(scene, derive_seed(config.seed, "caption", step, place))
            for place, (drop, (scene, _)) in enumerate(zip(dropped, scenes, strict=True))
        ]
        within = viewing(backbone.unet, add_on, rays.to(device))
        return {"views": loss_of_groups(backbone, clean, captions, within, generator)}

    made_from = f"{folder_sha256(base)} {num_rings} {'' if start is None else folder_sha256(start)}"
    with explicit_attention(backbone.unet):
        for step in train(add_on, loss_of, folder=folder / "state" / "views", config=config, made_from=made_from):
            note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            yield Progress(stage="views", done=step.step, total=step.num_steps, note=note)
    save_half(add_on, folder / "views")
