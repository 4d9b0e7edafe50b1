"""A small network that reads depth and things, pixel by pixel, from pictures of the world: the judge of light control.

What is a thing is told apart from sky and ground; which thing a pixel belongs to, by a vote for the thing's middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from miniature.control import Layouts, render_layouts
from miniature.pictures import Pictures
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import train
from restage.records import InputError, Progress, write_atomically

__all__ = ["RECIPE", "Reader", "Readout", "id_iou", "load_reader", "middles_of", "read_ids", "train_reader"]

RECIPE = TrainingConfig(num_steps=2500, batch_size=16, learning_rate=1e-3, num_warmup_steps=50, ema_decay=0.996)
SIZE = 64
"""Rows and columns of what it reads."""
OTHER = 255
"""Id of a pixel that shows a thing where none is wanted."""
MAX_DISTANCE = 0.2
"""Share of the picture's width from a thing's middle beyond which a vote is for none."""
FILE_NAME = "reader.safetensors"


class Readout(NamedTuple):
    """What is read in a batch of pictures."""

    classes: Float[Tensor, "b 3 64 64"]
    """Logits of sky, ground and thing."""
    middles: Float[Tensor, "b 2 64 64"]
    """Where the middle of the pixel's thing is, column and row in [0, 1]; meaningless elsewhere."""
    inverse_depth: Float[Tensor, "b 64 64"]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((inputs, stride), (outputs, 1)):
        layers += [nn.Conv2d(channels, outputs, 3, step, 1), nn.GroupNorm(8, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


class Reader(nn.Module):
    """A U of convolutions with skips, from pictures of 128 pixels to maps of 64."""

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 96, 128)) -> None:
        """Build it untrained."""
        super().__init__()
        self.downs = nn.ModuleList([_block(a, b, 2) for a, b in zip((3, *widths[:-1]), widths, strict=True)])
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.ups = nn.ModuleList([_block(a + b, b) for a, b in pairs])
        self.head = nn.Conv2d(widths[0], 6, 1)

    def forward(self, images: Float[Tensor, "b 3 128 128"]) -> Readout:
        """Read pictures in [0, 1]."""
        x, skips = images * 2 - 1, []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.ups, skips[-2::-1], strict=True):
            x = up(torch.cat([functional.interpolate(x, skip.shape[2:], mode="nearest"), skip], dim=1))
        found = self.head(x)
        return Readout(found[:, :3], found[:, 3:5], found[:, 5])


def middles_of(ids: Int[Tensor, "64 64"]) -> dict[int, Float[Tensor, " 2"]]:
    """Return the middle of each thing, column and row in [0, 1]."""
    places = (torch.arange(SIZE) + 0.5) / SIZE
    found = {}
    for number in ids[ids > 1].unique().tolist():
        rows, columns = (ids == number).nonzero(as_tuple=True)
        found[number] = torch.stack([places[columns].mean(), places[rows].mean()])
    return found


def _losses(found: Readout, ids: Int[Tensor, "b 64 64"], depth: Float[Tensor, "b 64 64"]) -> dict[str, Tensor]:
    middles = torch.zeros_like(found.middles)
    for row, picture in enumerate(ids):
        for number, middle in middles_of(picture.cpu()).items():
            middles[row, :, picture == number] = middle[:, None].to(middles)
    is_thing = (ids > 1)[:, None].float()
    missed = ((found.middles - middles).abs() * is_thing).sum() / is_thing.sum().clamp(min=1)
    return {
        "classes": functional.cross_entropy(found.classes, ids.clamp(max=2)),
        "middles": 2 * missed,
        "depth": 5 * (found.inverse_depth - depth).abs().mean(),
    }


def train_reader(
    folder: Path,
    pictures: Pictures,
    config: TrainingConfig = RECIPE,
    *,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train it on renders with a little noise, and save `<folder>/reader/reader.safetensors`.

    Command: `restage miniature train reader --num-pictures 36000`.

    Args:
        folder: Of the models; the pictures are in the folder `pictures` beside.
        pictures: The training set.
        config: How long and how fast.
        start: Folder of a reader whose weights training goes on from; None for none.
        device: Where to train, such as `cuda`.
    """
    torch.manual_seed(config.seed)  # initial weights only
    reader = (Reader() if start is None else load_reader(start / FILE_NAME).requires_grad_(True)).to(device)
    yield from render_layouts(folder.parent / "pictures", pictures)
    layouts = Layouts(folder.parent / "pictures", pictures)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(pictures), (config.batch_size,), generator=generator).tolist()
        depth, ids = layouts.truth(chosen)
        images = pictures.images(chosen)
        level = 0.05 * torch.rand(len(chosen), 1, 1, 1, generator=generator)
        images = (images + level * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        return _losses(reader(images.to(device)), ids[:, 1::2, 1::2].to(device), depth[:, 1::2, 1::2].to(device))

    for step in train(reader, loss_of, folder=folder / "state" / "reader", config=config):
        note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
        yield Progress(stage="reader", done=step.step, total=step.num_steps, note=note)
    with write_atomically(folder / "reader" / FILE_NAME) as temporary:
        save_file({name: value.half().contiguous() for name, value in reader.state_dict().items()}, temporary)


def load_reader(path: Path) -> Reader:
    """Load a reader, ready to read; a file that holds none is an InputError."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a reader; run: restage miniature train reader")
    reader = Reader()
    try:
        reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no reader of this shape: {str(error).splitlines()[0]}") from None
    return reader.eval().requires_grad_(False)


def read_ids(found: Readout, row: int, wanted: Int[Tensor, "64 64"]) -> Int[Tensor, "64 64"]:
    """Return the ids that a picture shows: things get the number of the wanted thing that they vote for."""
    ids = found.classes[row].argmax(0)
    middles = middles_of(wanted)
    is_thing = ids == 2
    if not middles:
        return torch.where(is_thing, OTHER, ids)
    numbers = torch.tensor(list(middles))
    places = torch.stack(list(middles.values()))
    distances = (found.middles[row].permute(1, 2, 0)[:, :, None] - places).norm(dim=-1)
    nearest, thing = distances.min(dim=-1)
    return torch.where(is_thing, torch.where(nearest < MAX_DISTANCE, numbers[thing], OTHER), ids)


def id_iou(found: Int[Tensor, "64 64"], wanted: Int[Tensor, "64 64"]) -> float:
    """Return the mean intersection over union of sky, ground and each thing, as far as they are wanted."""
    shares = [
        float(((found == number) & (wanted == number)).sum() / ((found == number) | (wanted == number)).sum())
        for number in wanted.unique().tolist()
    ]
    return sum(shares) / len(shares)
