"""Turns a caption into a clip: frames that temporal attention or a layout holds together, written as a film.

A film says what it was made from; one that is there and was made from the same is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from restage.clips.files import DEFAULT_RATE
from restage.clips.films import read_comment, write_film
from restage.diffusion.conditions import Conditions
from restage.diffusion.motion import max_frames, moving
from restage.diffusion.sampling import denoise, guided, initial_noise, latent_shape, sample_images
from restage.generate.config import PicturesConfig
from restage.generate.pictures import made_from, numbered, settings_of
from restage.records import InputError, Progress, canonical_json, content_id, derive_seed, write_atomically
from restage.scenes.io.images import to_uint8
from restage.train.chunks import hash_tensors

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
    motion: MotionAdapter | None,
    captions: Sequence[str],
    config: PicturesConfig,
    *,
    out: Path,
    num_frames: int = 8,
    seed: int = 0,
    layouts: Sequence[Conditions] = (),
) -> Iterator[Progress]:
    """Make `config.num` clips of each caption; a file that is there and was made from the same is kept.

    With temporal attention all frames are sampled together, and the noise of a frame depends on the caption, the clip's
    number, the frame's and the seed. Layouts, one for each frame, hold the frames by the backbone's control branches;
    then it goes without temporal attention too, and frames share their noise.

    Raises:
        InputError: more frames are asked for than the temporal attention can tell apart, or none; a file is there that
            was made from something else; or a caption is empty or too long.
    """
    num_frames = len(layouts) or num_frames
    if motion is None and not layouts:
        raise InputError("frames have nothing in common without temporal attention or a layout")
    if motion is not None and not 2 <= num_frames <= max_frames(motion):
        raise InputError(f"expected 2 to {max_frames(motion)} frames, got {num_frames}")
    orders = numbered(captions, config.num)
    backbone.token_ids(captions)  # one that is too long is refused before anything is made
    paths = clip_paths(out, len(orders))
    made = settings_of(backbone, config, layouts) | {"frames": num_frames, "seed": seed}
    made |= {"layout": content_id("layouts", [hash_tensors(layout) for layout in layouts])} if layouts else {}
    made |= {} if motion is None else {"motion": hash_tensors(motion.state_dict())}
    records = [canonical_json({**made, "caption": caption, "sample": sample}) for caption, sample in orders]
    for path, record in zip(paths, records, strict=True):
        if path.exists() and _made_from(path) != record:
            raise InputError(f"{path} is there and was made from something else; choose another --out, or remove it")
    total = len(orders) * config.steps
    for number, (path, record, (caption, sample)) in enumerate(zip(paths, records, orders, strict=True)):
        if path.exists():
            yield Progress(stage="clips", done=(number + 1) * config.steps, total=total, note=f"{path.name} is there")
            continue
        if motion is None:
            parts = _sample_apart(backbone, caption, config, seed=derive_seed(seed, caption, sample), layouts=layouts)
        else:
            seeds = [derive_seed(seed, caption, sample, frame) for frame in range(num_frames)]
            steered = backbone.steered(layouts) if layouts else backbone
            parts = _sample_together(steered, motion, caption, config, seeds)
        frames = None
        for share, found in parts:
            done, frames = number * config.steps + round(share * config.steps), found
            yield Progress(stage="clips", done=done, total=total, note=path.name)
        assert frames is not None
        _write(path, frames, record)


def _sample_together(
    backbone: Backbone, motion: MotionAdapter, caption: str, config: PicturesConfig, seeds: Sequence[int]
) -> Iterator[tuple[float, Tensor]]:
    """Sample frames through temporal attention; yields the share that is done, and last the frames "n 3 h w"."""
    text = backbone.encode_prompts([caption]).expand(len(seeds))
    scale = torch.full((len(seeds),), config.guidance)
    noise = initial_noise(latent_shape(backbone), seeds).to(backbone.device)
    predict = guided(backbone, text, backbone.encode_prompts([""]), scale)
    last = None
    with moving(backbone.unet, motion, len(seeds)):
        table = backbone.schedule.timesteps(config.steps)
        for last in denoise(backbone.schedule, noise, predict=predict, timesteps=table):
            if last.step < len(table):
                yield last.step / len(table), noise
    assert last is not None
    yield 1.0, backbone.decode_latents(last.latents).cpu()


def _sample_apart(
    backbone: Backbone, caption: str, config: PicturesConfig, *, seed: int, layouts: Sequence[Conditions]
) -> Iterator[tuple[float, Tensor]]:
    """Sample each frame under its layout; yields the share that is done, and the frames so far."""
    frames: list[Tensor] = []
    for start in range(0, len(layouts), config.batch_size):
        held = layouts[start : start + config.batch_size]
        seeds = [seed] * len(held)
        found = sample_images(
            backbone.steered(held),
            [caption] * len(held),
            seeds=seeds,
            steps=config.steps,
            guidance=config.guidance,
        )
        frames.append(found.cpu())
        yield (start + len(held)) / len(layouts), torch.cat(frames)


def _made_from(path: Path) -> str:
    return made_from(path) if path.suffix.lower() == ".gif" else read_comment(path)


def _write(path: Path, frames: torch.Tensor, record: str) -> None:
    if path.suffix.lower() == ".gif":
        first, *rest = (Image.fromarray(to_uint8(frame)) for frame in frames)
        with write_atomically(path) as temporary:
            how = {"duration": round(1000 / DEFAULT_RATE), "loop": 0, "comment": record.encode()}
            first.save(temporary, format="GIF", save_all=True, append_images=rest, **how)
    else:
        write_film(path, frames, frames_per_s=DEFAULT_RATE, comment=record)
