"""A training step of the edit model on latents that were encoded once, against one that encodes in every step.

    python -m benchmarks.train_step                            # the miniature; 100 CPU seconds
    python -m benchmarks.train_step --size sd15 --rounds 3     # Stable Diffusion 1.5's size, random weights, 256 px
    python -m benchmarks.train_step --reader 7000 1000000      # drawing batches from so many pairs: speed, memory

The other side does in a step what `train_instruct_pix2pix.py` does, of diffusers' `examples/instruct_pix2pix`: the
autoencoder encodes the pictures after the edit (a draw from its distribution) and before it (the mode), the text
encoder the instructions and, for those dropped, the empty text; then noise, UNet, mean squared error, clipping and
optimizer. Its pictures and tokens lie in memory, so neither its reading of files nor its tokenizing is counted; ours
reads latents from chunk files. Neither keeps an average of the weights. The last line is JSON:

- train_step_ratio: samples per second, ours over the public way, from medians of rounds in turn. Equal on both sides
  is what `held_equal` lists. The public way computes as its script does, with PyTorch's default attention and memory
  format, and autoencoder and text encoder cast to the dtype.
- train_step_ratio_encoding_alone: the same where the public way also computes as ours does, with explicit attention,
  channels last and autocast, so that encoding in every step is all that differs.
- ..._cpu: the same two by this process's CPU time, for a machine that is shared.
- encode_s_per_pair: what encoding a pair costs us, once; pays_after_epochs: epochs after which that is saved again.

At Stable Diffusion's size a step takes plain SGD instead of AdamW, whose two moments would be 7 GB more, and one UNet,
channels last, serves all; its text encoder has 2 layers of 12. That needs 11 GB; a step takes some 20 CPU seconds.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.clocks import peak_of_child, rounds_of, times
from benchmarks.stable_diffusion import random_stable_diffusion
from miniature.command import without_denormals
from miniature.rendered_pairs import render_pairs
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.edit_models import widen_unet
from restage.diffusion.hardware import bfloat16_autocast, keep_freed_memory
from restage.diffusion.training import explicit_attention
from restage.train.batches import edit_loss, sample_edit_batch
from restage.train.chunks import FileRows, StoredRows, check_or_make
from restage.train.config import ExampleMix, LossWeights
from restage.train.examples import CHUNK_SIZE, LEAVE_ALONE, ExactPair, Examples, encode_examples

ASSETS = Path(__file__).parents[1] / "restage" / "assets"
DROP = 0.05
"""The public script's `conditioning_dropout_prob`: shares without text, without picture and without both."""
MIX = ExampleMix(drop_text=DROP, drop_image=DROP, drop_both=DROP, backwards_share=0.0, identity_share=0.0)
"""Only what the public script does as well: dropped conditions, and half of the pairs mirrored."""
HELD_EQUAL = (
    "initial weights",
    "UNet with mask output",
    "batch size",
    "dtype",
    "threads",
    "optimizer",
    "gradient clipping",
    "mirrored and dropped shares",
    "no average of weights",
)
NUM_DISTINCT = 400
"""Chunk files that are really written for `--reader`; larger sets repeat them."""


class Training:
    """A UNet in training with its optimizer."""

    def __init__(self, backbone: Backbone, unet: nn.Module, *, is_bf16: bool, optimizer: torch.optim.Optimizer) -> None:
        """Take the parts."""
        self.backbone, self.unet, self.is_bf16, self.optimizer = backbone, unet, is_bf16, optimizer
        self.trained = list(unet.parameters())

    def autocast(self) -> torch.autocast:
        """Compute in the dtype that was asked for."""
        return bfloat16_autocast(self.backbone.device, is_wanted=self.is_bf16)

    def finish(self, loss: Tensor) -> None:
        """Do what follows the loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class CachedWay:
    """What `restage train` does in a step."""

    def __init__(self, training: Training, examples: Examples, batch_size: int) -> None:
        """Take what to train, and on what."""
        self.training, self.examples, self.batch_size, self.step = training, examples, batch_size, 0

    def __call__(self) -> None:
        """Do one step."""
        training, self.step = self.training, self.step + 1
        generator = torch.Generator().manual_seed(self.step)
        with explicit_attention(training.unet):
            with training.autocast():
                batch = sample_edit_batch(self.examples, MIX, batch_size=self.batch_size, seed=0, step=self.step)
                terms = edit_loss(
                    training.unet,
                    batch,
                    generator,
                    schedule=training.backbone.schedule,
                    condition_scale=1.0,
                    weights=LossWeights(mask=0.1),
                ).whole()
            training.finish(torch.stack(list(terms.values())).sum())


class PublicWay:
    """What the public script does in a step; `is_as_written` leaves kernels and layouts at PyTorch's defaults."""

    def __init__(self, training: Training, pairs: Sequence[ExactPair], batch_size: int, *, is_as_written: bool) -> None:
        """Hold pictures in [-1, 1] and tokens in memory, as its data loader hands them over."""
        self.training, self.batch_size, self.is_as_written = training, batch_size, is_as_written
        self.before, self.after = (
            torch.stack([getattr(pair, side) for pair in pairs]) * 2 - 1 for side in ("source", "edited")
        )
        backbone = training.backbone
        self.tokens = backbone.token_ids([pair.prompt.instruction for pair in pairs])
        self.no_tokens = backbone.token_ids([""])
        self.vae, self.text_encoder = backbone.vae, backbone.text_encoder
        self.dtype = torch.bfloat16 if training.is_bf16 else torch.float32
        if is_as_written:
            self.vae, self.text_encoder = (
                copy.deepcopy(part).to(self.dtype, memory_format=torch.contiguous_format)
                for part in (self.vae, self.text_encoder)
            )

    def _latents(self, pictures: Tensor, *, is_drawn: bool) -> Tensor:
        if self.is_as_written:
            encoded = self.vae.encode(pictures.to(self.dtype))
        else:
            with self.training.autocast():
                encoded = self.vae.encode(pictures.contiguous(memory_format=torch.channels_last))
        if hasattr(encoded, "latent"):  # the miniature's autoencoder has no distribution to draw from
            return encoded.latent.float()
        return (encoded.latent_dist.sample() if is_drawn else encoded.latent_dist.mode()).float()

    def _text(self, tokens: Tensor) -> Tensor:
        if self.is_as_written:
            return self.text_encoder(input_ids=tokens).last_hidden_state.float()
        with self.training.autocast():
            return self.text_encoder(input_ids=tokens).last_hidden_state.float()

    def _loss(self) -> Tensor:
        training, schedule = self.training, self.training.backbone.schedule
        rows = torch.randint(len(self.tokens), (self.batch_size,))
        is_mirrored = (torch.rand(self.batch_size) < MIX.mirror_share)[:, None, None, None]
        before, after = (
            torch.where(is_mirrored, side[rows].flip(-1), side[rows]) for side in (self.before, self.after)
        )
        clean = self._latents(after, is_drawn=True) * self.training.backbone.vae.config["scaling_factor"]
        noise = torch.randn(clean.shape)
        t = torch.randint(schedule.num_train_timesteps, (self.batch_size,))
        noisy = schedule.add_noise(clean, noise, t)
        text, condition = self._text(self.tokens[rows]), self._latents(before, is_drawn=False)
        chance = torch.rand(self.batch_size)
        has_no_text, has_no_picture = chance < 2 * DROP, (chance >= DROP) & (chance < 3 * DROP)
        text = torch.where(has_no_text[:, None, None], self._text(self.no_tokens), text)
        condition = torch.where(has_no_picture[:, None, None, None], 0.0, condition)
        inputs = torch.cat([noisy, condition], dim=1)
        if not self.is_as_written:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with training.autocast():
            output = training.unet(inputs, t, encoder_hidden_states=text).sample
        prediction = output[:, : clean.shape[1]].float()  # the rest is the mask, which the public model does not have
        return functional.mse_loss(prediction, schedule.target(clean, noise, t))

    def __call__(self) -> None:
        """Do one step."""
        if self.is_as_written:
            self.training.finish(self._loss())
            return
        with explicit_attention(self.training.unet):
            self.training.finish(self._loss())


def result_of(steps: Iterator[Any]) -> Any:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def resized(pair: ExactPair, size: int) -> ExactPair:
    """Bring a rendered pair to another size."""
    pictures = torch.cat([pair.source, pair.edited, pair.mask[None]])[None]
    large = functional.interpolate(pictures, size=(size, size), mode="bilinear")[0].clamp(0, 1)
    return pair._replace(source=large[:3], edited=large[3:6], mask=large[6])


def compare_steps(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time both ways in turn."""
    is_miniature = arguments.size == "miniature"
    if is_miniature:
        backbone, batch_size, num_pairs = load_backbone(ASSETS / "text_to_image"), arguments.batch or 32, 128
        pairs = list(render_pairs(num_pairs, seed=7))
    else:
        backbone, batch_size, num_pairs = random_stable_diffusion(arguments.pixels), arguments.batch or 4, 8
        pairs = [resized(pair, arguments.pixels) for pair in render_pairs(num_pairs, seed=7)]
    backbone = dataclasses.replace(backbone, has_autocast=arguments.dtype == "bfloat16")
    encoded = []
    spent = times(lambda: encoded.append(result_of(encode_examples(pairs, backbone, folder / "cache"))))
    unet: Any = widen_unet(backbone.unet)
    if not is_miniature:  # the one that was widened is not needed any more
        backbone = dataclasses.replace(backbone, unet=unet)
    parts: list[Any] = [backbone.vae, backbone.text_encoder]
    for part in parts:
        part.requires_grad_(False).eval()

    def training_of(unet: Any, memory_format: torch.memory_format = torch.channels_last) -> Training:
        unet.to(memory_format=memory_format).requires_grad_(True).train()
        make = torch.optim.AdamW if is_miniature else torch.optim.SGD
        optimizer = make(unet.parameters(), lr=1e-4, fused=True)
        return Training(backbone, unet, is_bf16=arguments.dtype == "bfloat16", optimizer=optimizer)

    ours = training_of(unet)
    if is_miniature:
        alike, public = training_of(copy.deepcopy(unet)), training_of(copy.deepcopy(unet), torch.contiguous_format)
    else:  # its weights do not change what a step takes, and memory does not hold three of it
        alike = public = ours
    ways: dict[str, Callable[[], None]] = {
        "ours": CachedWay(ours, encoded[0], batch_size),
        "public": PublicWay(public, pairs, batch_size, is_as_written=True),
        "public_computed_like_ours": PublicWay(alike, pairs, batch_size, is_as_written=False),
    }

    def repeated(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(arguments.steps):
                step()

        return run

    rounds = rounds_of([repeated(step) for step in ways.values()], arguments.rounds)
    samples = batch_size * arguments.steps
    columns = dict(zip(ways, zip(*rounds, strict=True), strict=True))
    rates = {name: samples / statistics.median(each.wall for each in column) for name, column in columns.items()}
    cpu_rates = {name: samples / statistics.median(each.cpu for each in column) for name, column in columns.items()}
    once_s = spent.wall / len(pairs)
    result = {
        "size": arguments.size,
        "pixels": pairs[0].source.shape[-1],
        "parameters": sum(parameter.numel() for parameter in ours.trained),
        "batch_size": batch_size,
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "optimizer": type(ours.optimizer).__name__,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "held_equal": list(HELD_EQUAL),
        "samples_per_s": rates,
        "samples_per_cpu_s": cpu_rates,
        "train_step_ratio": rates["ours"] / rates["public"],
        "train_step_ratio_cpu": cpu_rates["ours"] / cpu_rates["public"],
        "train_step_ratio_encoding_alone": rates["ours"] / rates["public_computed_like_ours"],
        "train_step_ratio_encoding_alone_cpu": cpu_rates["ours"] / cpu_rates["public_computed_like_ours"],
        "ratios_by_round": [[each.wall / round_[0].wall for each in round_[1:]] for round_ in rounds],
        "encode_s_per_pair": once_s,
        "pays_after_epochs": once_s / (1 / rates["public_computed_like_ours"] - 1 / rates["ours"]),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return _rounded(result)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def compare_readers(counts: Sequence[int], folder: Path, *, batch_size: int = 32, num_batches: int = 300) -> list[Any]:
    """Draw batches from chunk files, and where all files are distinct from memory too: milliseconds and memory."""

    def latents(index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        pictures = torch.randn(2, 2 * CHUNK_SIZE, 8, 16, 16, generator=generator).half()
        return {"source": pictures[0], "edited": pictures[1], "masks": pictures[1, :, 0].sigmoid()}

    num_files = min(NUM_DISTINCT, -(-max(counts) // CHUNK_SIZE))
    files = [check_or_make(folder / f"{index}.safetensors", lambda i=index: latents(i)) for index in range(num_files)]

    def examples_of(count: int) -> Examples:
        num_chunks = count // CHUNK_SIZE
        count = num_chunks * CHUNK_SIZE
        numbers = torch.arange(2 * count, dtype=torch.int32)
        segments = [FileRows(i % num_files, first, CHUNK_SIZE) for first in (0, CHUNK_SIZE) for i in range(num_chunks)]
        text = 1 + len(LEAVE_ALONE) + numbers % 900
        return Examples(
            **{name: StoredRows(name, files, segments) for name in ("source", "edited", "masks")},
            mirrored=numbers.roll(count),
            text=text,
            settled_text=text.clone(),
            undo_text=text.clone(),
            settled_undo=text.clone(),
            texts=torch.zeros(1000, 32, dtype=torch.int32),
            num_pairs=count,
            id="examples-0",
        )

    def draw(examples: Examples) -> None:
        for step in range(num_batches):
            sample_edit_batch(examples, MIX, batch_size=batch_size, seed=0, step=step)

    def forget() -> None:
        for file in files:
            with file.path.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    rows = []
    for count in counts:
        stored = examples_of(count)
        row: dict[str, Any] = {
            "pairs": stored.num_pairs,
            "grown_mb": peak_of_child(lambda count=count: draw(examples_of(count))) / 1e6,
        }
        forget()
        row["first_ms_from_disk"] = 1e3 * times(lambda stored=stored: draw(stored)).wall / num_batches
        works = [lambda stored=stored: draw(stored)]
        if count <= num_files * CHUNK_SIZE:
            tensors = {name: getattr(stored, name)[torch.arange(len(stored.source))] for name in ("source", "edited")}
            masks = stored.masks[torch.arange(len(stored.source))]
            held = dataclasses.replace(stored, masks=masks, **tensors)
            row["held_mb"] = sum(value.nbytes for value in (*tensors.values(), masks)) / 1e6
            works.append(lambda held=held: draw(held))
        spent = rounds_of(works, 5)
        for name, column in zip(("files", "memory"), zip(*spent, strict=False), strict=False):
            row[f"ms_from_{name}"] = 1e3 * float(np.median([each.wall for each in column])) / num_batches
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("miniature", "sd15"), default="miniature")
    parser.add_argument("--pixels", type=int, default=256, help="side of a picture, for sd15")
    parser.add_argument("--batch", type=int, default=None, help="default: 32, for sd15 4")
    parser.add_argument("--steps", type=int, default=1, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=15, help="those that count; one more comes before them")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--reader", type=int, nargs="+", default=None, help="numbers of pairs; times only the batches")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, without_denormals():
        if arguments.reader:
            print(json.dumps({"reader": compare_readers(arguments.reader, Path(folder))}))
        else:
            print(json.dumps(compare_steps(arguments, Path(folder))))


if __name__ == "__main__":
    main()
