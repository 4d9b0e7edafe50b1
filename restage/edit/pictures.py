"""Pictures in and out of files for editing and comparing: views, masks and orbit clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.clips.films import write_film
from restage.records import InputError
from restage.scenes.io.images import UNREADABLE, open_picture, quantize, write_png

__all__ = ["quantize", "read_image", "read_mask", "write_image", "write_mask", "write_video"]

FRAMES_PER_SECOND = 15.0


def read_image(path: Path) -> Float[Tensor, "3 h w"]:
    """Read a picture as RGB in [0, 1]."""
    return torch.from_numpy(_open(path, "RGB")).permute(2, 0, 1).contiguous()


def read_mask(path: Path) -> Float[Tensor, "h w"]:
    """Read a gray picture as values in [0, 1]."""
    return torch.from_numpy(_open(path, "L"))


def _open(path: Path, mode: str) -> np.ndarray:
    try:
        with open_picture(path) as image:
            return np.asarray(image.convert(mode), dtype=np.float32) / 255
    except UNREADABLE as error:
        raise InputError(f"{path} is not readable as a picture: {error}") from None


def write_image(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    """Write RGB in [0, 1] as PNG, atomically."""
    write_png(path, image.permute(1, 2, 0))


def write_mask(path: Path, mask: Float[Tensor, "h w"]) -> None:
    """Write values in [0, 1] as a gray PNG, atomically."""
    write_png(path, mask)


def write_video(path: Path, frames: Float[Tensor, "n 3 h w"]) -> None:
    """Write frames as a film; see `write_film`."""
    write_film(path, frames, frames_per_s=FRAMES_PER_SECOND)
