"""What temporal attention makes of a caption: do the frames of a clip belong together, and show what was asked for?

    python -m benchmarks.text_to_clip                                        # the shipped temporal attention
    python -m benchmarks.text_to_clip --motion training/miniature/motion --captions 8

Frames are sampled together through temporal attention, and beside it each by itself from the same noise. *same
reading*: the probe reads the same kinds, colors, number, ground and light in all frames of a clip. *change*: the mean
absolute difference of a frame from the one before, which true clips of the world have as well. *loss*: of the model's
own target on unseen clips of the world, with and without temporal attention, at the same noise. The last line is JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from benchmarks.miniature.held_out import Captioned, captions
from benchmarks.miniature.parts import fits
from benchmarks.miniature.verdicts import Seen, judge, seen_in
from miniature.motion import KINDS
from miniature.probe import Probe, load_probe, read_pictures
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import Clip, load_clip
from restage.diffusion.motion import load_motion, moving
from restage.diffusion.sampling import denoise, guided, initial_noise, latent_shape
from restage.records import InputError, derive_seed
from restage.run.models import add_on_of, models_in
from restage.scenes.io.images import write_png
from restage.world.clips import sample_clip
from restage.world.render import render_view
from restage.world.second import caption_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    models: Path | None = None
    """Folder with `text_to_image` and `clip`; default: those of the package."""
    motion: Path | None = None
    """Temporal attention; default: the one beside the model."""
    probe: Path = Path(__file__).parent / "miniature" / "probe.safetensors"
    """The probe's weights."""
    captions: int = 24
    """Captions of the world's first edition to make clips of."""
    clips: int = 30
    """Unseen clips of the world that the loss is measured on."""
    num_frames: int = 8
    steps: int = 20
    guidance: float = 4.0
    world_seed: int = 37
    out: Path = Path("runs/text-to-clip")
    """Where the sheet of frames goes."""


def sampled(backbone: Backbone, motion: Any, item: Captioned, settings: Settings) -> Float[Tensor, "frames 3 h w"]:
    """Sample the frames of a caption: together, or each by itself where there is no temporal attention."""
    seeds = [derive_seed(item.seed, "frame", frame) for frame in range(settings.num_frames)]
    text = backbone.encode_prompts([item.caption]).expand(len(seeds))
    scales = torch.full((len(seeds),), settings.guidance)
    predict = guided(backbone, text, backbone.encode_prompts([""]), scales)
    with nullcontext() if motion is None else moving(backbone.unet, motion, len(seeds)):
        noise = initial_noise(latent_shape(backbone), seeds)
        *_, last = denoise(
            backbone.schedule, noise, predict=predict, timesteps=backbone.schedule.timesteps(settings.steps)
        )
    return backbone.decode_latents(last.latents)


def true_clips(settings: Settings) -> Iterator[tuple[str, Float[Tensor, "frames 3 h w"]]]:
    """Unseen clips of the world with their captions, all kinds of motion in turn."""
    for index in range(settings.clips):
        motion, moves_camera = KINDS[index % len(KINDS)]
        seed = derive_seed("unseen clip", settings.world_seed, index)
        clip = sample_clip(seed, motion=motion, moves_camera=moves_camera, num_frames=settings.num_frames)
        frames = [render_view(frame, clip.cameras[place]).image for place, frame in enumerate(clip.frames)]
        yield caption_of(clip.frames[0], seed), torch.from_numpy(np.stack(frames))


@torch.no_grad()
def losses(
    backbone: Backbone, motion: Any, caption: str, frames: Float[Tensor, "frames 3 h w"], number: int
) -> tuple[float, float]:
    """The loss of one clip without and with temporal attention, at the same noise and level."""
    clean, generator = backbone.encode_images(frames), torch.Generator().manual_seed(number)
    noise = torch.randn(clean.shape, generator=generator)
    # Levels are spread evenly over the clips.
    level = round((number * 0.61803398875 % 1) * (backbone.schedule.num_train_timesteps - 1))
    t = torch.full((len(clean),), level)
    noisy, target = backbone.schedule.add_noise(clean, noise, t), backbone.schedule.target(clean, noise, t)
    text = backbone.encode_text([caption]).repeat_interleave(len(clean), dim=0)
    found = []
    for within in (nullcontext(), moving(backbone.unet, motion, len(clean))):
        with within:
            predicted = backbone.unet(noisy, t, encoder_hidden_states=text).sample
        found.append(float(functional.mse_loss(predicted, target)))
    return found[0], found[1]


def change(frames: Float[Tensor, "frames 3 h w"]) -> float:
    """Mean absolute difference of a frame from the one before."""
    return float((frames[1:] - frames[:-1]).abs().mean())


def reading(seen: Seen) -> tuple[Any, ...]:
    """What of a reading is the same throughout a clip."""
    return tuple(sorted(seen.colors.items())), seen.count, seen.ground, seen.time


def judged(
    clips: Sequence[Float[Tensor, "frames 3 h w"]], items: Sequence[Captioned], probe: Probe, clip: Clip
) -> dict[str, float]:
    """The figures of sampled clips."""
    right, same, consistent = [], [], []
    for frames, item in zip(clips, items, strict=True):
        seen = seen_in(read_pictures(probe, frames))
        right += [judge(one, item.description).is_all_right for one in seen]
        same.append(len({reading(one) for one in seen}) == 1)
        embedded = clip.encode_images(frames)
        consistent.append(float((embedded[1:] * embedded[:-1]).sum(dim=1).mean()))
    figures = {"frames_right": right, "same_reading": same, "frame_consistency": consistent}
    figures["change"] = [change(frames) for frames in clips]
    return {name: math.fsum(values) / len(values) for name, values in figures.items()}


def main(settings: Settings) -> None:
    """Measure; prints a table and, last, the JSON."""
    models = models_in(settings.models)
    folder = settings.motion or add_on_of(models.text_to_image, "motion")
    if folder is None:
        raise InputError("there is no temporal attention; restage miniature train motion makes one")
    backbone = load_backbone(models.text_to_image)
    motion = load_motion(folder, backbone.unet)
    probe, clip = load_probe(settings.probe), load_clip(models.clip)
    items = captions(
        settings.world_seed,
        settings.captions,
        edition=1,
        fits=lambda item: fits(backbone.tokenizer, item.caption) and len(item.description.objects) < 3,
    )
    found: dict[str, float] = {}
    shown = []
    for name, attention in (("apart", None), ("together", motion)):
        clips = [sampled(backbone, attention, item, settings) for item in items]
        found |= {f"{name}_{key}": value for key, value in judged(clips, items, probe, clip).items()}
        shown.append([torch.cat(list(frames), dim=2) for frames in clips[:6]])
    write_png(
        settings.out / "frames.png",
        torch.cat([row for pair in zip(*shown, strict=True) for row in pair], dim=1).permute(1, 2, 0),
    )
    both, changes = [], []
    for number, (caption, frames) in enumerate(true_clips(settings)):
        changes.append(change(frames))
        if fits(backbone.tokenizer, caption):
            both.append(losses(backbone, motion, caption, frames, number))
    without, with_it = (math.fsum(column) / len(both) for column in zip(*both, strict=True))
    found |= {"true_change": math.fsum(changes) / len(changes), "loss_without": without, "loss_with": with_it}
    for name, value in found.items():
        print(f"{name:<28}{value:.4f}")
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Settings], description=__doc__))
