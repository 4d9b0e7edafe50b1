"""Pictures that pairs are made from or hold: opened in one way, whoever has made the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from restage.records import InputError
from restage.scenes.io.images import UNREADABLE, open_picture

__all__ = ["decode_picture", "load_picture", "read_picture", "upright_picture"]


def read_picture(folder: Path, name: str) -> bytes:
    """Read the file of a picture as it is.

    Raises:
        InputError: it is not there.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / name}, which a prompt pair names, cannot be read: {error.strerror}") from None


def load_picture(content: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """Decode a picture as it is stored.

    Raises:
        InputError: it cannot be decoded to its end; `name` opens the message.
    """
    with open_picture(content, name) as image:
        try:
            return image.convert(mode)
        except UNREADABLE as error:
            raise InputError(f"{name} cannot be decoded: {error}") from None


def upright_picture(content: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """Decode a picture and turn it upright; of one with transparency, what cannot be seen is black in RGB.

    Raises:
        InputError: it cannot be decoded to its end; `name` opens the message.
    """
    with open_picture(content, name) as image:
        try:
            turned = ImageOps.exif_transpose(image)
            if mode == "RGB" and ("A" in turned.getbands() or "transparency" in turned.info):
                turned = Image.alpha_composite(Image.new("RGBA", turned.size, "black"), turned.convert("RGBA"))
            if turned.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            return turned.convert(mode)
        except UNREADABLE as error:
            raise InputError(f"{name} cannot be decoded: {error}") from None


def decode_picture(content: bytes, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Decode a picture to [0, 1], turn it upright, and crop its middle to the given height and width.

    Raises:
        InputError: it cannot be decoded.
    """
    height, width = size
    upright = upright_picture(content, "the picture of a prompt pair")
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
