"""Photographs and masks as arrays, with one clear line for whatever can be wrong with an image file.

Every picture that comes from outside is opened by `open_picture`. The readers ask for sizes first, which reads headers
only; pixels are decoded when a view is made.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import ExifTags, Image, UnidentifiedImageError

from restage.records import InputError, MissingExtra
from restage.scenes.cameras import MAX_SIDE

__all__ = ["IMAGE_SUFFIXES", "RASTER_FORMATS", "PictureHead", "list_images", "open_picture", "path_inside"]
__all__ += ["read_head", "read_image", "read_mask"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif", ".avif")
RASTER_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "AVIF")
"""Pillow's names. Its other plugins start programs (Ghostscript for EPS) or parse what no camera writes."""
MAX_PIXELS = 120_000_000
"""More than the largest cameras' sensors have; a small file can claim far more."""
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    SyntaxError,
    Image.DecompressionBombError,
)
"""What Pillow's plugins raise on broken files."""


class PictureHead(NamedTuple):
    """What the header of an image file says."""

    width: int
    """In pixels, as the file stores them."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8: how stored pixels are turned or mirrored to be shown."""


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
        path.is_file()
    except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, a circle of links
        is_inside = False
    if not is_inside:
        raise InputError(f"{where}: expected a path inside {folder.name or folder}/, got {name[:200]!r}")
    return path


def open_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Open an image from a file or from bytes; its header is read, its pixels are not.

    Only raster formats are tried, so that no file reaches a Pillow plugin that runs other programs.

    `name` opens error messages; default: the path.

    Raises:
        InputError: there is no such file, it is no image of a known format, or it has too many pixels.
        MissingExtra: it is HEIC, and pillow-heif is not installed.
    """
    name = name or (str(source) if isinstance(source, Path) else "a picture")
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{name} does not exist or is not a file")
    formats: list[str] = list(RASTER_FORMATS)
    try:
        head = source[:32] if isinstance(source, bytes) else _first_bytes(source)
        if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
            _register_heif(name)
            formats = ["HEIF"]
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{name} is not readable as an image: {str(error)[:200]}") from None
    width, height = image.size
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        image.close()
        limits = f"{MAX_SIDE} px a side and {MAX_PIXELS // 10**6} MP"
        raise InputError(f"{name}: expected an image of at most {limits}, got {width}x{height}")
    return image


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _register_heif(name: str) -> None:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise MissingExtra(f"{name} is a HEIC picture, and pillow-heif", "heif") from None
    pillow_heif.register_heif_opener()


def read_head(path: Path) -> PictureHead:
    """Size and orientation from the header.

    Raises:
        InputError: there is no such file, it is no image, or it is absurdly large.
    """
    with open_picture(path) as image:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except UNREADABLE:  # broken EXIF says nothing; the pixels may still be fine
            orientation = 1
        return PictureHead(*image.size, orientation if orientation in range(1, 9) else 1)


def read_image(path: Path) -> Float[np.ndarray, "h w 3"]:
    """RGB, float32 in [0, 1], as stored; gray images get three equal channels, and what is transparent is black.

    Raises:
        InputError: it cannot be decoded to its end.
    """
    with open_picture(path) as image:
        try:
            if image.mode.startswith("I;16"):
                gray = np.asarray(image, dtype=np.float32) / 65535
                return np.repeat(gray[..., None], 3, axis=2)
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
    with open_picture(path) as image:
        try:
            is_deep = image.mode.startswith("I;16")
            values = np.asarray(image if is_deep else image.convert("L"), dtype=np.float32)
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as a mask: {error}") from None
    return values if values.max(initial=0) <= 1 else values / (65535 if is_deep else 255)
