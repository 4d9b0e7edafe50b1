"""The miniature's temporal attention: it learns from moving clips how frames of one scene belong together.

Clips are rendered and encoded once; the text-to-image model's own weights stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miniature.control import base_of
from miniature.text_to_image import cache_of, loss_of_groups
from restage.diffusion.backbone import Backbone, load_backbone, save_half
from restage.diffusion.config import TrainingConfig
from restage.diffusion.motion import build_motion, load_motion, moving
from restage.diffusion.training import explicit_attention, train
from restage.records import InputError, Progress, derive_seed, write_atomically
from restage.run.models import folder_sha256
from restage.world.clips import MOTIONS, Clip, sample_clip
from restage.world.render import render_view
from restage.world.second import caption_of

__all__ = ["NUM_CLIPS", "NUM_FRAMES", "RECIPE", "make_clips", "motion_clip", "train_motion"]

RECIPE = TrainingConfig(num_steps=5000, batch_size=32, learning_rate=2e-4, num_warmup_steps=100, ema_decay=0.998)
"""A batch is counted in frames: 4 clips of 8 cost what 32 pictures cost."""
NUM_CLIPS, SHARD_SIZE, NUM_FRAMES = 3000, 50, 8
DROP_TEXT = 0.1
KINDS = tuple(itertools.product(MOTIONS, (False, True)))[:-2] + (("still", True),)
"""What moves, and whether the camera does, in turn; a clip in which nothing does is a picture."""


def motion_clip(index: int, *, seed: int = 0) -> Clip:
    """The clip of a number, of the split `train`."""
    motion, moves_camera = KINDS[index % len(KINDS)]
    return sample_clip(
        derive_seed("motion clip", seed, index), motion=motion, moves_camera=moves_camera, num_frames=NUM_FRAMES
    )


def make_clips(folder: Path, backbone: Backbone, num_clips: int, *, seed: int = 0) -> Iterator[Progress]:
    """Render clips and encode them, in shards that hold latents alone; shards that are there are kept."""
    for first in range(0, num_clips, SHARD_SIZE):
        path = folder / f"shard-{first // SHARD_SIZE:05d}.npy"
        if not path.exists():
            latents = []
            for index in range(first, first + SHARD_SIZE):
                clip = motion_clip(index, seed=seed)
                frames = [render_view(frame, clip.cameras[place]).image for place, frame in enumerate(clip.frames)]
                latents.append(backbone.encode_images(torch.from_numpy(np.stack(frames))).half().cpu().numpy())
            with write_atomically(path) as temporary:
                np.save(temporary, np.stack(latents))
        yield Progress(stage="clips", done=min(first + SHARD_SIZE, num_clips), total=num_clips)


def train_motion(
    folder: Path,
    config: TrainingConfig = RECIPE,
    *,
    num_clips: int = NUM_CLIPS,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train it on the autoencoder's latents of clips, and save `<folder>/motion` in half precision.

    The objective is the model's own; all frames of a clip have one noise level, and noise of their own. Clips are
    rendered and encoded first, to `<folder>/state/clips-<model>`. Command: `restage miniature train motion`.

    Args:
        folder: Of the models.
        config: How long and how fast.
        num_clips: Clips of eight frames that are rendered.
        start: Temporal attention of the same UNet that training goes on from; None for one that changes nothing.
        device: Where to train, such as `cuda`.
    """
    base = base_of(folder)
    if num_clips < 1:
        raise InputError(f"expected at least one clip, got {num_clips}")
    backbone = load_backbone(base, device)
    cache = cache_of(folder, "clips", base, config.seed)
    yield from make_clips(cache, backbone, num_clips, seed=config.seed)
    shards = [
        np.load(cache / f"shard-{number:05d}.npy", mmap_mode="r") for number in range(-(-num_clips // SHARD_SIZE))
    ]
    if start is None:
        motion = build_motion(backbone.unet, seed=config.seed)
        motion.to(device=device)  # pyright: ignore[reportCallIssue]
    else:
        motion = load_motion(start, backbone.unet, device).requires_grad_(True)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        count = max(1, config.batch_size // NUM_FRAMES)
        chosen = torch.randint(num_clips, (count,), generator=generator).tolist()
        latents = np.concatenate([shards[index // SHARD_SIZE][index % SHARD_SIZE] for index in chosen])
        clean = torch.from_numpy(latents).float()
        dropped = (torch.rand(count, generator=generator) < DROP_TEXT).tolist()
        scenes = [motion_clip(index, seed=config.seed).frames[0] for index in chosen]
        captions = [
            "" if drop else caption_of(scene, derive_seed("caption", step, place))
            for place, (drop, scene) in enumerate(zip(dropped, scenes, strict=True))
        ]
        within = moving(backbone.unet, motion, NUM_FRAMES)
        return {"motion": loss_of_groups(backbone, clean, captions, within, generator)}

    made_from = f"{folder_sha256(base)} {num_clips} {'' if start is None else folder_sha256(start)}"
    with explicit_attention(backbone.unet):
        for step in train(motion, loss_of, folder=folder / "state" / "motion", config=config, made_from=made_from):
            note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            yield Progress(stage="motion", done=step.step, total=step.num_steps, note=note)
    save_half(motion, folder / "motion")
