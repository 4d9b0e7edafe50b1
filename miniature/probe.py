"""The probe: a small convolutional net that reads what a picture of the miniature world shows.

An instrument for the benchmark and no part of any method: it is trained on rendered truth only, so what it says about a
generated picture does not depend on the models that are measured. Called by `restage miniature train probe` and
`benchmarks/miniature`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from miniature.pictures import Pictures
from miniature.probe_pictures import (
    FIRST_KIND_CLASS,
    IGNORED,
    MAX_COUNT,
    NUM_CLASSES,
    Labels,
    ProbePictures,
    concatenate_labels,
    label_of,
    make_probe_pictures,
    to_unit,
)
from restage.diffusion.backbone import load_backbone
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import train
from restage.records import InputError, Progress, write_atomically
from restage.world.description import COLORS, GROUNDS, KINDS, PATTERNS, TIMES

__all__ = [
    "NUM_PROBE_PICTURES",
    "RECIPE",
    "Probe",
    "ProbeOutput",
    "Readings",
    "likeliest_kinds",
    "load_probe",
    "probe_losses",
    "read_pictures",
    "save_probe",
    "train_probe",
]

RECIPE = TrainingConfig(num_steps=10000, batch_size=48, learning_rate=2e-3, num_warmup_steps=100, ema_decay=0.995)
NUM_PATTERNS = 1 + len(PATTERNS)
"""Patterns that are told apart, none among them."""
NUM_PROBE_PICTURES = 24000
"""Free scenes that are rendered for it, each once as it is and once as the autoencoder gives it back."""
SHARES = (0.1, 0.3, 0.6)
"""Shares of pictures with one, two and three objects, of those from the training set of the models: single objects are
soon read without a mistake, objects behind others are not."""
FILE_NAME = "probe.safetensors"


class ProbeOutput(NamedTuple):
    """Logits."""

    classes: Float[Tensor, "b classes 16 16"]
    """Of each cell: sky, ground, the kinds."""
    colors: Float[Tensor, "b kinds colors"]
    """Of each kind's object: the mean of its cells' color logits, weighted by how much they are of that kind."""
    present: Float[Tensor, "b kinds"]
    count: Float[Tensor, "b counts"]
    ground: Float[Tensor, "b grounds"]
    time: Float[Tensor, "b times"]
    patterns: Float[Tensor, "b kinds patterns"] | None = None
    """As the colors; None from a probe of the first edition, which knows none."""


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(hidden)))


def _blocks(channels: int, count: int) -> list[_Block]:
    return [_Block(channels) for _ in range(count)]


class Probe(nn.Module):
    """Cells of 8x8 pixels say what they show and how it is painted; heads over all cells say the rest."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), *, reads_patterns: bool = True) -> None:
        """Build it untrained; `widths` are the channels at 64x64, at 32x32 and at 16x16."""
        super().__init__()
        edges, fine, coarse = widths
        self.edges = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, edges, 3, padding=1), nn.SiLU())
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * edges, fine, 1), *_blocks(fine, 3))
        self.coarse = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1), *_blocks(coarse, 4))
        self.context = nn.Sequential(nn.AvgPool2d(2), *_blocks(coarse, 2), nn.Upsample(scale_factor=2))
        self.last = nn.Sequential(_Block(coarse), nn.GroupNorm(8, coarse), nn.SiLU())
        self.reads_patterns = reads_patterns
        self.parts = (NUM_CLASSES, len(COLORS), NUM_PATTERNS if reads_patterns else 0)
        self.cells = nn.Conv2d(coarse, sum(self.parts), 1)
        self.sizes = (len(KINDS), MAX_COUNT + 1, len(GROUNDS), len(TIMES))
        self.heads = nn.Sequential(
            nn.Linear(2 * coarse + 2 * NUM_CLASSES, 96), nn.SiLU(), nn.Linear(96, sum(self.sizes))
        )

    def forward(self, images: Float[Tensor, "b 3 128 128"]) -> ProbeOutput:
        """Read pictures in [0, 1]."""
        edges = self.edges((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        coarse = self.coarse(self.fine(edges))
        features = self.last(coarse + self.context(coarse))
        classes, *paint = self.cells(features).float().split(self.parts, dim=1)
        shares = classes.softmax(1)
        weights = shares[:, FIRST_KIND_CLASS:]
        weights = weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
        summary = [features.mean((2, 3)), features.amax((2, 3)), shares.mean((2, 3)), shares.amax((2, 3))]
        heads = self.heads(torch.cat([part.float() for part in summary], dim=1)).float()
        present, count, ground, time = heads.split(self.sizes, dim=1)
        colors, patterns = (torch.einsum("bkij,bcij->bkc", weights, part) for part in paint)
        patterns = patterns if self.reads_patterns else None
        return ProbeOutput(classes, colors, present, count, ground, time, patterns)


def _to_tensors(labels: Labels, device: torch.device) -> dict[str, Int64[Tensor, ...]]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in labels._asdict().items()}


def probe_losses(output: ProbeOutput, labels: Labels) -> dict[str, Float[Tensor, ""]]:
    """Return the cross entropies of everything that is read; what is `IGNORED` does not count."""
    truth = _to_tensors(labels, output.classes.device)
    present = functional.binary_cross_entropy_with_logits(
        output.present, truth["present"].clamp(min=0).float(), weight=(truth["present"] != IGNORED).float()
    )

    def of_kinds(logits: Float[Tensor, "b kinds n"], name: str) -> Float[Tensor, ""]:
        told = truth[name].flatten()
        total = functional.cross_entropy(logits.flatten(0, 1), told, reduction="sum")
        return total / (told != IGNORED).sum().clamp(min=1)  # a small batch may show unnamed colors alone

    assert output.patterns is not None
    return {
        "classes": functional.cross_entropy(output.classes, truth["classes"]),
        "colors": of_kinds(output.colors, "colors"),
        "patterns": 0.5 * of_kinds(output.patterns, "patterns"),
        "present": 2 * present,
        "count": 0.5 * functional.cross_entropy(output.count, truth["count"]),
        "ground": 0.3 * functional.cross_entropy(output.ground, truth["ground"]),
        "time": 0.3 * functional.cross_entropy(output.time, truth["time"]),
    }


def _blurred(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel)[None, None].expand(3, 1, 3, 3)
    return functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def augment(
    images: Float[Tensor, "b 3 h w"], labels: Labels, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 h w"], Labels]:
    """Blur some pictures, add a little noise and brightness to all, mirror half of them with their cells."""

    def chosen(share: float) -> Tensor:
        return torch.rand(len(images), generator=generator)[:, None, None, None] < share

    images = torch.where(chosen(0.3), _blurred(images), images)
    level = torch.rand(len(images), generator=generator)[:, None, None, None]
    images = images + 0.03 * level * torch.randn(images.shape, generator=generator)
    images = images * (1 + 0.06 * (torch.rand(len(images), generator=generator)[:, None, None, None] - 0.5))
    mirrored = chosen(0.5)
    images = torch.where(mirrored, images.flip(3), images).clamp(0, 1)
    is_mirrored = mirrored[:, 0, 0].numpy()[:, :, None]
    return images, labels._replace(classes=np.where(is_mirrored, labels.classes[:, :, ::-1], labels.classes))


def _training_labels(pictures: Pictures, indices: list[int]) -> Labels:
    return concatenate_labels([label_of(pictures.descriptions[i], pictures.object_ids[i]) for i in indices])


def train_probe(
    folder: Path,
    pictures: Pictures,
    config: TrainingConfig = RECIPE,
    *,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train it, and save `<folder>/probe/probe.safetensors` in half precision.

    Half of each batch is from the training set of the models, a quarter are free scenes (any combination, any number
    of objects), a quarter such scenes as the autoencoder in `<folder>/text_to_image` gives them back. Free scenes
    are rendered first, to `<folder>/state/free_pictures`.
    Command: `restage miniature train probe --num-pictures 36000`. 70 minutes on two cores with bfloat16, nine of them
    for the free scenes; in the world's first edition kinds are right in 99.3 to 99.9 % of 1,000 unseen renders (mean of
    nine worlds 99.6), all in 99.1 to 99.5 % (docs/log/2026-11-29-sampling-and-probe.md).

    Args:
        folder: Of the models; its `text_to_image` is there already.
        pictures: The training set.
        config: How long and how fast; free scenes come of its seed.
        start: Folder of a probe whose weights training goes on from; None for none.
        device: Where to train, such as `cuda`.

    Raises:
        InputError: there is no probe to start from, or it reads no patterns.
    """
    torch.manual_seed(config.seed)  # initial weights only
    probe = Probe() if start is None else load_probe(start / FILE_NAME).requires_grad_(True)
    if not probe.reads_patterns:
        raise InputError(f"{start} holds a probe of the world's first edition, which reads no patterns")
    made = folder / "state" / "free_pictures"
    backbone = load_backbone(folder / "text_to_image", device)
    yield from make_probe_pictures(made, NUM_PROBE_PICTURES, backbone, seed=config.seed)
    free, chances = ProbePictures(made, NUM_PROBE_PICTURES), pictures.chances(SHARES)
    probe.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        num_free = config.batch_size // 2
        drawn_ones = torch.multinomial(chances, config.batch_size - num_free, replacement=True, generator=generator)
        indices = drawn_ones.tolist()
        others = torch.randint(len(free), (num_free,), generator=generator).tolist()
        drawn = to_unit(free.images(others, is_soft=[i % 2 == 0 for i in range(num_free)]))
        labels = concatenate_labels([_training_labels(pictures, indices), free.labels.take(others)])
        images, labels = augment(torch.cat([pictures.images(indices), drawn]), labels, generator)
        return probe_losses(probe(images.to(device)), labels)

    for step in train(probe, loss_of, folder=folder / "state" / "probe", config=config):
        note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
        yield Progress(stage="probe", done=step.step, total=step.num_steps, note=note)
    save_probe(probe, folder / "probe" / FILE_NAME)


def save_probe(probe: Probe, path: Path) -> None:
    """Save the weights in half precision."""
    with write_atomically(path) as temporary:
        save_file({name: value.half().contiguous() for name, value in probe.state_dict().items()}, temporary)


def load_probe(path: Path) -> Probe:
    """Load a probe, ready to read.

    Raises:
        InputError: there is none, or the file holds other weights.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a probe; run: restage miniature train probe")
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
        # Probes of the first edition know no patterns.
        probe = Probe(reads_patterns=len(weights.get("cells.bias", ())) > NUM_CLASSES + len(COLORS))
        probe.load_state_dict(weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no probe of this shape: {str(error).splitlines()[0]}") from None
    return probe.eval().requires_grad_(False)


class Readings(NamedTuple):
    """What the probe reads in a batch of pictures; the same fields as `Labels`, without anything ignored."""

    present: Int64[Tensor, "n kinds"]
    """1 where the kind is there."""
    colors: Int64[Tensor, "n kinds"]
    """The color of the kind's object; meaningless where the kind is not there."""
    count: Int64[Tensor, " n"]
    ground: Int64[Tensor, " n"]
    time: Int64[Tensor, " n"]
    classes: Int64[Tensor, "n 16 16"]
    patterns: Int64[Tensor, "n kinds"]
    """-1 from a probe that knows no patterns."""


def read_pictures(probe: Probe, images: Float[Tensor, "n 3 128 128"], *, batch_size: int = 64) -> Readings:
    """Read pictures in [0, 1]."""
    parts = []
    for part in images.split(batch_size):
        with torch.no_grad():
            output = probe(part)
        present, count = likeliest_kinds(output.present, output.count)
        ground, time = output.ground.argmax(1), output.time.argmax(1)
        colors, classes = output.colors.argmax(2), output.classes.argmax(1)
        patterns = torch.full_like(colors, -1) if output.patterns is None else output.patterns.argmax(2)
        parts.append(Readings(present, colors, count, ground, time, classes, patterns))
    return Readings(*(torch.cat(column) for column in zip(*parts, strict=True)))


def likeliest_kinds(
    present: Float[Tensor, "n kinds"], count: Float[Tensor, "n counts"]
) -> tuple[Int64[Tensor, "n kinds"], Int64[Tensor, " n"]]:
    """The likeliest kinds and number of objects that go together: an object is of one kind, a kind may come twice.

    Args:
        present: Logits of each kind.
        count: Logits of each number of objects, from 0.

    Returns:
        1 where the kind is there; the number of objects.
    """
    order = present.argsort(1, descending=True)
    # The likeliest kinds, for a given number of them, have the highest logits: a logit is what a kind's presence adds.
    gains = functional.pad(present.gather(1, order).cumsum(1), (1, 0))
    counts, numbers = torch.arange(count.shape[1])[:, None], torch.arange(gains.shape[1])[None]
    is_possible = (numbers <= counts) & (numbers >= counts.clamp(max=1))
    scores = count.log_softmax(1)[:, :, None] + gains[:, None]
    best = scores.masked_fill(~is_possible, -torch.inf).flatten(1).argmax(1)
    number = best % gains.shape[1]
    is_chosen = torch.arange(present.shape[1]) < number[:, None]
    return torch.zeros_like(order).scatter(1, order, is_chosen.long()), best // gains.shape[1]
