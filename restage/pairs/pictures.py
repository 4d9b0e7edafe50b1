"""Pictures that pairs are made from: sent along with the job, and decoded where the pair is made."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from restage.records import InputError

__all__ = ["decode_picture", "read_picture"]


def read_picture(folder: Path, name: str) -> bytes:
    """Read the file of a picture as it is.

    Raises:
        InputError: it is not there.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / name}, which a prompt pair names, cannot be read: {error.strerror}") from None


def decode_picture(content: bytes, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Decode a picture to [0, 1], turn it upright, and crop its middle to the given height and width.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the picture of a prompt pair cannot be decoded: {error}") from None
    height, width = size
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
