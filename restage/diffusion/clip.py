"""A CLIP for scoring: pictures and texts to unit vectors; the miniature's own or any CLIP folder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from restage.diffusion.loading import check_tokens, load_model, load_tokenizer, padded_ids
from restage.records import read_json
from restage.run.profile import timed

__all__ = ["Clip", "load_clip"]

_Spread = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class _Normal:
    """The range that a CLIP takes: by default that of every published one; the miniature's names its own."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[_Spread, _Spread, _Spread] = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Clip:
    """A contrastive model of pictures and texts (Radford et al. 2021)."""

    model: CLIPModel
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 size size"]:
        """Bring pictures in [0, 1] to the size and range that the model takes."""
        vision: Any = self.model.config.vision_config
        size = vision.image_size
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        shape = (1, 3, 1, 1)
        return (images - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures in [0, 1] as unit vectors."""
        device = next(self.model.parameters()).device
        with timed("CLIP"), torch.no_grad():
            hidden = self.model.vision_model(pixel_values=self.normalise(images.cpu()).to(device)).pooler_output
            return functional.normalize(self.model.visual_projection(hidden).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embed texts as unit vectors; texts that are too long are refused."""
        device = next(self.model.parameters()).device
        text_config: Any = self.model.config.text_config
        ids = padded_ids(self.tokenizer, texts, text_config.max_position_embeddings).to(device)
        with torch.no_grad():
            hidden = self.model.text_model(input_ids=ids).pooler_output
            return functional.normalize(self.model.text_projection(hidden).float(), dim=-1)


def load_clip(folder: Path, device: str = "cpu") -> Clip:
    """Load a CLIP folder of transformers (`config.json`, weights, tokenizer files, `preprocessor_config.json`)."""
    model, tokenizer = load_model(CLIPModel, folder), load_tokenizer(folder)
    check_tokens(tokenizer, model.config.text_config, folder)
    preprocessor = folder / "preprocessor_config.json"
    normal = read_json(preprocessor, _Normal) if preprocessor.exists() else _Normal()
    return Clip(model.to(device).eval().requires_grad_(False), tokenizer, normal.image_mean, normal.image_std)
