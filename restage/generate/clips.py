"""Turns a caption into a clip: frames that are sampled together, through temporal attention, written as a film."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from restage.clips.files import DEFAULT_RATE, write_film
from restage.diffusion.motion import max_frames, moving
from restage.diffusion.sampling import denoise, guided, initial_noise, latent_shape
from restage.generate.config import PicturesConfig
from restage.records import InputError, Progress, derive_seed, write_atomically
from restage.scenes.io.images import to_uint8

if TYPE_CHECKING:
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    from restage.diffusion.backbone import Backbone

__all__ = ["CLIP_SUFFIXES", "clip_paths", "generate_clips"]

CLIP_SUFFIXES = (".mp4", ".webm", ".gif")


def clip_paths(out: Path, count: int) -> list[Path]:
    """Name the files of so many clips: `out` itself for one, else x-000.mp4 and so on; in a folder 000.mp4."""
    if out.suffix.lower() not in CLIP_SUFFIXES:
        return [out / f"{number:03d}.mp4" for number in range(count)]
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{number:03d}{out.suffix}") for number in range(count)]


def generate_clips(
    backbone: Backbone,
    motion: MotionAdapter,
    captions: Sequence[str],
    config: PicturesConfig,
    *,
    out: Path,
    num_frames: int = 8,
    seed: int = 0,
) -> Iterator[Progress]:
    """Make `config.num` clips of each caption; a file that is there is kept.

    The noise of a frame depends on the caption, the clip's number, the frame's and the seed.

    Raises:
        InputError: more frames are asked for than the temporal attention can tell apart, or none.
    """
    if not 2 <= num_frames <= max_frames(motion):
        raise InputError(f"expected 2 to {max_frames(motion)} frames, got {num_frames}")
    orders = [(caption, sample) for caption in captions for sample in range(config.num)]
    paths = clip_paths(out, len(orders))
    table = backbone.schedule.timesteps(config.steps)
    total = len(orders) * len(table)
    for number, (path, (caption, sample)) in enumerate(zip(paths, orders, strict=True)):
        if path.exists():
            yield Progress(stage="clips", done=(number + 1) * len(table), total=total, note=f"{path.name} is there")
            continue
        seeds = [derive_seed(seed, caption, sample, frame) for frame in range(num_frames)]
        text = backbone.encode_prompts([caption]).expand(num_frames)
        scale = torch.full((num_frames,), config.guidance)
        noise = initial_noise(latent_shape(backbone), seeds).to(backbone.device)
        predict = guided(backbone, text, backbone.encode_prompts([""]), scale)
        last = None
        with moving(backbone.unet, motion, num_frames):
            for last in denoise(backbone.schedule, noise, predict=predict, timesteps=table):
                done = number * len(table) + last.step
                yield Progress(stage="clips", done=done, total=total, note=path.name)
        assert last is not None
        _write(path, backbone.decode_latents(last.latents).cpu())


def _write(path: Path, frames: torch.Tensor) -> None:
    if path.suffix.lower() == ".gif":
        first, *rest = (Image.fromarray(to_uint8(frame)) for frame in frames)
        with write_atomically(path) as temporary:
            duration = round(1000 / DEFAULT_RATE)
            first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    else:
        write_film(path, frames, frames_per_s=DEFAULT_RATE)
