"""What judges pictures: the CLIP, DINO and LPIPS at hand, each from a folder; what is not at hand says why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.compare.config import CompareConfig
from restage.pairs.score import ImageTextModel
from restage.records import InputError, content_id, file_sha256
from restage.run.models import models_in

__all__ = ["Dino", "ImageModel", "Judges", "Lpips", "alexnet_features", "load_dino"]
__all__ += ["load_lpips", "open_judges"]

MEASURES_VERSION = 1
"""Raised whenever the same config comes to mean other numbers."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIZE = 224
"""Side, in pixels, that DINOv2's own preprocessing crops to."""


@runtime_checkable
class ImageModel(Protocol):
    """Embeds pictures."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures in [0, 1] as unit vectors."""
        ...


@dataclass(frozen=True)
class Judges:
    """The models that judge; None where there is none."""

    clip: ImageTextModel | None = None
    dino: ImageModel | None = None
    lpips: Lpips | None = None
    id: str = ""  # content id of the settings and weights that numbers depend on
    missing: dict[str, str] = field(default_factory=dict)
    """Why one is missing: by `clip`, `dino`, `lpips`."""


@dataclass
class Dino:
    """Features of a self-supervised vision transformer: the embedding of its class token."""

    model: Any

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures in [0, 1] as unit vectors."""
        resized = functional.interpolate(images, (DINO_SIZE, DINO_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        shape = (1, 3, 1, 1)
        pixels = (resized - torch.tensor(IMAGENET_MEAN).view(shape)) / torch.tensor(IMAGENET_STD).view(shape)
        with torch.no_grad():
            hidden = self.model(pixel_values=pixels.to(next(self.model.parameters()).device)).last_hidden_state
        return functional.normalize(hidden[:, 0].float(), dim=-1)


def load_dino(folder: Path, device: str = "cpu") -> Dino:
    """Load a folder of transformers: DINOv2 (`Dinov2Model`) or DINO (`ViTModel`)."""
    from transformers import AutoModel

    from restage.diffusion.loading import load_model, read_config

    kind = read_config(folder).get("model_type")
    if kind not in ("dinov2", "vit", "dinov2_with_registers"):
        raise InputError(f"{folder}: expected a DINO or DINOv2 (model_type dinov2 or vit), got {kind}")
    # What pools a ViT's tokens was never trained in a DINO, is in no folder of one, and is not used here.
    model = load_model(AutoModel, folder, may_lack=("pooler.",))
    return Dino(model.to(device).eval().requires_grad_(False))


def open_judges(config: CompareConfig, device: str = "cpu") -> Judges:
    """Load the models that a config names, CLIP and DINO to a device; what it does not name is missing, with why."""
    from restage.diffusion.clip import load_clip

    clip_folder = config.clip or models_in().clip
    missing = {}
    for name, option in (("dino", "a DINOv2 folder"), ("lpips", "a folder with the weights of LPIPS")):
        if getattr(config, name) is None:
            missing[name] = f"no weights at hand: name {option} with --{name}"
    folders = {"clip": clip_folder, "dino": config.dino, "lpips": config.lpips}
    patterns = ("*.safetensors", "*.bin", "*.pth")
    facts: dict[str, dict[str, str] | None] = dict.fromkeys(folders)
    for name, folder in folders.items():
        if folder is not None:
            files = sorted(path for pattern in patterns for path in folder.glob(pattern))
            facts[name] = {path.name: file_sha256(path) for path in files}
    settings = [MEASURES_VERSION, config.no_op_share, config.orbit_frames]
    return Judges(
        clip=load_clip(clip_folder, device),
        dino=None if config.dino is None else load_dino(config.dino, device),
        lpips=None if config.lpips is None else load_lpips(config.lpips),
        id=content_id("judges", {"settings": settings, **facts}),
        missing=missing,
    )


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
    weights: tuple[Tensor, ...]  # weights of the channels of each compared layer, none negative

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
