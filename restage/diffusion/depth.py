"""Depth as an estimator reads it from a picture: DPT (MiDaS) or Depth Anything, from a folder of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import DepthAnythingForDepthEstimation, DPTForDepthEstimation

from restage.diffusion.loading import load_model, read_config
from restage.records import InputError, read_json

__all__ = ["DepthModel", "Preparation", "load_depth_model", "read_preparation"]

KINDS: dict[str, Any] = {"depth_anything": DepthAnythingForDepthEstimation, "dpt": DPTForDepthEstimation}


@dataclass(frozen=True)
class _Settings:
    """What is read of `preprocessor_config.json`."""

    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size: dict[str, int] | int | None = None


@dataclass(frozen=True)
class Preparation:
    """Brings pictures into the form that a model was trained on."""

    mean: Float[Tensor, "3 1 1"]
    deviation: Float[Tensor, "3 1 1"]
    size: tuple[int, int]  # height and width, in pixels, that pictures are brought to

    def __call__(self, images: Float[Tensor, "b 3 h w"], device: torch.device) -> Float[Tensor, "b 3 height width"]:
        """Resize and normalize RGB in [0, 1]."""
        small = functional.interpolate(images.to(device), self.size, mode="bicubic", antialias=True)
        return (small - self.mean.to(device)) / self.deviation.to(device)


@dataclass(frozen=True)
class DepthModel:
    """An estimator of relative inverse depth."""

    model: Any
    preparation: Preparation

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return inverse depth, stretched to [0, 1] in each picture: near is 1."""
        found = self.model(pixel_values=self.preparation(images, self.model.device)).predicted_depth
        found = functional.interpolate(found[:, None].float(), images.shape[-2:], mode="bilinear")
        low, high = found.amin((1, 2, 3), keepdim=True), found.amax((1, 2, 3), keepdim=True)
        return ((found - low) / (high - low).clamp_min(1e-12)).cpu()


def load_depth_model(folder: Path, device: str = "cpu") -> DepthModel:
    """Load a folder of DPT or Depth Anything; another model is an InputError."""
    kind = read_config(folder).get("model_type")
    if kind not in KINDS:
        raise InputError(f"{folder} holds a {kind!r}, expected a model of depth: {' or '.join(KINDS)}")
    model = load_model(KINDS[kind], folder).to(device).eval().requires_grad_(False)
    return DepthModel(model, read_preparation(folder, 384))


def read_preparation(folder: Path, side: int) -> Preparation:
    """Read how pictures are prepared for a model; `side` in pixels where its folder does not say."""
    path = folder / "preprocessor_config.json"
    told = read_json(path, _Settings) if path.is_file() else _Settings()
    size = {"shortest_edge": told.size} if isinstance(told.size, int) else told.size or {}
    height, width = (size.get(name, size.get("shortest_edge", side)) for name in ("height", "width"))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (told.image_mean, told.image_std))
    return Preparation(mean, deviation, (height, width))
