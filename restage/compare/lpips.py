"""LPIPS from files at hand: AlexNet's features, compared layer by layer with learned weights.

Written out here since the packages that have it (lpips, torchmetrics) need torchvision, which nothing else of ours
does, and download their weights. Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
metric", arXiv 1801.03924, equation 1; version 0.1, network "alex".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.records import InputError

__all__ = ["Lpips", "alexnet_features", "load_lpips"]

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Normalisation of pictures in [-1, 1]."""
TAPS = (1, 4, 7, 9, 11)
"""Layers whose output is compared: those after each ReLU."""
WIDTHS = (64, 192, 384, 256, 256)
MIN_SIZE = 63
"""Side in pixels below which AlexNet has no output; smaller pictures are enlarged to it."""


def alexnet_features() -> nn.Sequential:
    """The convolutional half of AlexNet as torchvision numbers its layers (Krizhevsky 2014, arXiv 1404.5997)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


@dataclass
class Lpips:
    """The learned distance."""

    features: nn.Sequential
    weights: tuple[Tensor, ...]
    """Weights of the channels of each compared layer, none negative."""

    def distance(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> list[float]:
        """Distance of each pair of pictures in [0, 1]; 0 for equal ones."""
        with torch.no_grad():
            totals = torch.zeros(len(first))
            pairs = zip(self._layers(first), self._layers(second), self.weights, strict=True)
            for one, other, weights in pairs:
                # The public code divides by the norm plus 1e-10 where `normalize` takes the larger of the two: the same
                # to float32 wherever a feature is not zero throughout.
                squares = (functional.normalize(one, eps=1e-10) - functional.normalize(other, eps=1e-10)).square()
                totals += (squares * weights.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return totals.tolist()

    def _layers(self, images: Tensor) -> list[Tensor]:
        if min(images.shape[2:]) < MIN_SIZE:
            scale = MIN_SIZE / min(images.shape[2:])
            sides = tuple(max(MIN_SIZE, round(side * scale)) for side in images.shape[2:])
            images = functional.interpolate(images, sides, mode="bilinear", align_corners=False)
        shape = (1, 3, 1, 1)
        hidden = (2 * images - 1 - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
        found = []
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in TAPS:
                found.append(hidden)
        return found


def load_lpips(folder: Path) -> Lpips:
    """Load torchvision's alexnet-owt-7be5be79 from `alexnet.pth`, and lpips' v0.1/alex from `lpips_alex.pth`."""
    features = alexnet_features()
    backbone = _load(folder / "alexnet.pth")
    layers = {name.removeprefix("features."): value for name, value in backbone.items() if name.startswith("features.")}
    heads = _load(folder / "lpips_alex.pth")
    try:
        features.load_state_dict(layers)
        weights = tuple(heads[f"lin{layer}.model.1.weight"].float().view(width) for layer, width in enumerate(WIDTHS))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folder} does not hold LPIPS of AlexNet: {' '.join(str(error).split())}") from None
    return Lpips(features.eval().requires_grad_(False), weights)


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; docs/truth.md says where the weights come from") from None
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{path} is not readable as weights: {error}") from None
