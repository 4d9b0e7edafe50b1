"""Photographs and masks as arrays, with one clear line for whatever can be wrong with an image file.

The readers ask for sizes first, which reads headers only; pixels are decoded when a view is made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError

from restage.records import InputError
from restage.scenes.cameras import MAX_SIDE

__all__ = ["IMAGE_SUFFIXES", "list_images", "path_inside", "read_image", "read_image_size", "read_mask"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs."""
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def list_images(folder: Path) -> list[Path]:
    """The image files right in a folder, by name; hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def path_inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name` below a folder.

    Raises:
        InputError: it leaves the folder, by `..`, as an absolute path or through a link; `where` opens the message.
    """
    try:
        path = folder / name
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, a circle of links
        is_inside = False
    if not is_inside:
        raise InputError(f"{where}: expected a path inside {folder.name or folder}/, got {name[:200]!r}")
    return path


def read_image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header.

    Raises:
        InputError: there is no such file, it is no image, or it is absurdly large.
    """
    with _open(path) as image:
        width, height = image.size
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise InputError(f"{path}: expected an image of at most {MAX_SIDE} px a side and 178 MP, got {width}x{height}")
    return width, height


def read_image(path: Path) -> Float[np.ndarray, "h w 3"]:
    """RGB, float32 in [0, 1]; grey images get three equal channels, and what is transparent is black.

    Raises:
        InputError: it cannot be decoded to its end.
    """
    with _open(path) as image:
        try:
            if image.mode.startswith("I;16"):
                grey = np.asarray(image, dtype=np.float32) / 65535
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise InputError(f"{path}: expected an image of 8 or 16 bits, got mode {image.mode}; convert it")
            if "A" in image.getbands() or "transparency" in image.info:
                rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
                return rgba[..., :3] * rgba[..., 3:]
            return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        except InputError:
            raise
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as an image: {error}") from None


def read_mask(path: Path) -> Float[np.ndarray, "h w"]:
    """Weights of pixels, float32 in [0, 1]: black is left out, white counts; a mask of labels 0 and 1 too.

    Raises:
        InputError: it is missing or not readable.
    """
    with _open(path) as image:
        try:
            is_deep = image.mode.startswith("I;16")
            values = np.asarray(image if is_deep else image.convert("L"), dtype=np.float32)
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as a mask: {error}") from None
    return values if values.max(initial=0) <= 1 else values / (65535 if is_deep else 255)


def _open(path: Path) -> Image.Image:
    """The image with its header read.

    Raises:
        InputError: there is no such file, or it is no image.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, though the capture names it")
    try:
        return Image.open(path)
    except UNREADABLE as error:
        raise InputError(f"{path} is not readable as an image: {error}") from None
