"""What judges pictures: the CLIP, DINO and LPIPS at hand, each from a folder; what is not at hand says why.

Opened once for all results of a run; `measure.py` asks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.records import InputError, content_id, file_sha256
from restage.run.models import models_in

__all__ = ["CompareConfig", "Dino", "ImageModel", "Judges", "TextModel", "load_dino", "open_judges"]

MEASURES_VERSION = 1
"""Raised whenever the same config comes to mean other numbers."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIZE = 224
"""Side, in pixels, that DINOv2's own preprocessing crops to."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How results are judged."""

    no_op_share: float = 0.1
    """An edit whose mean change inside the region is below this share of what truth changes there is a no-op."""
    orbit_frames: int = 36
    """Frames of the orbit that consistency is measured on, before and after the edit; 0 to leave it out."""
    clip: Path | None = None
    """Folder of a CLIP in the form of transformers, such as a copy of openai/clip-vit-large-patch14; None for the
    miniature's own, which knows the miniature world and nothing else."""
    dino: Path | None = None
    """Folder of a DINO or DINOv2 in the form of transformers, such as a copy of facebook/dinov2-base."""
    lpips: Path | None = None
    """Folder with `alexnet.pth` (torchvision's weights) and `lpips_alex.pth` (the linear layers, version 0.1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.no_op_share < 1:
            raise InputError(f"expected no_op_share in [0, 1), got {self.no_op_share}")
        if self.orbit_frames == 1 or self.orbit_frames < 0:
            raise InputError(f"expected 0 or at least 2 orbit frames, got {self.orbit_frames}")


@runtime_checkable
class ImageModel(Protocol):
    """Embeds pictures."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures in [0, 1] as unit vectors."""
        ...


@runtime_checkable
class TextModel(ImageModel, Protocol):
    """Embeds pictures and texts in one space."""

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embed texts as unit vectors."""
        ...


@runtime_checkable
class PictureDistance(Protocol):
    """How different two pictures look."""

    def distance(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> list[float]:
        """Distance of each pair of pictures in [0, 1]; 0 for equal ones."""
        ...


@dataclass(frozen=True)
class Judges:
    """The models that judge; None where there is none."""

    clip: TextModel | None = None
    dino: ImageModel | None = None
    lpips: PictureDistance | None = None
    id: str = ""
    """Content id of the settings and weights that numbers depend on."""
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
            hidden = self.model(pixel_values=pixels).last_hidden_state
        return functional.normalize(hidden[:, 0].float(), dim=-1)


def load_dino(folder: Path) -> Dino:
    """Load a folder of transformers: DINOv2 (`Dinov2Model`) or DINO (`ViTModel`)."""
    from transformers import AutoModel

    from restage.diffusion.loading import load_model, read_config

    kind = read_config(folder).get("model_type")
    if kind not in ("dinov2", "vit", "dinov2_with_registers"):
        raise InputError(f"{folder}: expected a DINO or DINOv2 (model_type dinov2 or vit), got {kind}")
    # What pools a ViT's tokens was never trained in a DINO, is in no folder of one, and is not used here.
    model = load_model(AutoModel, folder, may_lack=("pooler.",))
    return Dino(model.eval().requires_grad_(False))


def open_judges(config: CompareConfig) -> Judges:
    """Load the models that a config names; what it does not name is missing, with the reason."""
    from restage.compare.lpips import load_lpips
    from restage.diffusion.clip import load_clip

    clip_folder = config.clip or models_in().clip
    missing = {}
    for name, option in (("dino", "a DINOv2 folder"), ("lpips", "a folder with the weights of LPIPS")):
        if getattr(config, name) is None:
            missing[name] = f"no weights at hand: name {option} with --{name}"
    folders = {"clip": clip_folder, "dino": config.dino, "lpips": config.lpips}
    facts = {name: None if folder is None else _hashes(folder) for name, folder in folders.items()}
    settings = [MEASURES_VERSION, config.no_op_share, config.orbit_frames]
    return Judges(
        clip=load_clip(clip_folder),
        dino=None if config.dino is None else load_dino(config.dino),
        lpips=None if config.lpips is None else load_lpips(config.lpips),
        id=content_id("judges", {"settings": settings, **facts}),
        missing=missing,
    )


def _hashes(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")]
    return {path.name: file_sha256(path) for path in sorted(files)}
