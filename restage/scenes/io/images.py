"""Photographs and masks as arrays, with one clear line for whatever can be wrong with an image file.

Every picture that comes from outside is opened by `open_picture`. The readers ask for sizes first, which reads headers
only; pixels are decoded when a view is made.

COLMAP and nerfstudio read pixels as they are stored; instant-ngp, OpenCV and phones' own apps turn them by EXIF first.
A camera model is therefore for either, and the shape of its pictures tells for which (`orientation_of`).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from restage.records import InputError, MissingExtra, write_atomically
from restage.scenes.cameras import MAX_SIDE

__all__ = ["IMAGE_SUFFIXES", "Orientation", "PictureHead", "RASTER_FORMATS", "list_images", "open_picture"]
__all__ += ["orientation_of", "path_inside", "quantize", "read_alpha", "read_head", "read_image", "read_mask"]
__all__ += ["to_uint8", "turn_camera", "turn_intrinsics", "unexif", "write_png"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif", ".avif")
RASTER_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "AVIF")
"""Pillow's names. Its other plugins start programs (Ghostscript for EPS) or parse what no camera writes."""
MAX_PIXELS = 120_000_000
UNREADABLE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, SyntaxError)
UNREADABLE += (Image.DecompressionBombError,)
"""What Pillow's plugins raise on broken files."""


class PictureHead(NamedTuple):
    """What the header of an image file says."""

    width: int  # in pixels, as the file stores them
    height: int
    orientation: int
    """EXIF orientation, 1 to 8: how stored pixels are turned or mirrored to be shown."""


def list_images(folder: Path) -> list[Path]:
    """The image files right in a folder, by name, numbers in it by value; hidden ones are left out."""
    found = sorted(folder.iterdir(), key=lambda path: (_parts(path.name), path.name)) if folder.is_dir() else []
    shown = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    return [path for path in shown if path.is_file()]


def _parts(name: str) -> list[str | int]:
    """Split a name into texts and numbers in turn, so that `frame_9` comes before `frame_10`."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def path_inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name` below a folder; refuses one that leaves it, also through a link. `where` opens the message."""
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

    Only raster formats are tried, so that no file reaches a Pillow plugin that runs other programs. Too many pixels are
    refused, and HEIC without pillow-heif. `name` opens error messages; default: the path.
    """
    name = name or (str(source) if isinstance(source, Path) else "a picture")
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{name} does not exist or is not a file")
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as content:
            head = content.read(32)
        is_heif = head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis")
        if is_heif:
            import pillow_heif  # pyright: ignore[reportMissingImports]  (optional)

            pillow_heif.register_heif_opener()
        formats: list[str] = ["HEIF"] if is_heif else list(RASTER_FORMATS)
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats)
    except ImportError:
        raise MissingExtra(f"{name} is a HEIC picture, and pillow-heif", "heif") from None
    except UNREADABLE as error:
        raise InputError(f"{name} is not readable as an image: {str(error)[:200]}") from None
    width, height = image.size
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        image.close()
        limits = f"{MAX_SIDE} px a side and {MAX_PIXELS // 10**6} MP"
        raise InputError(f"{name}: expected an image of at most {limits}, got {width}x{height}")
    return image


def read_head(source: Path | bytes, name: str = "") -> PictureHead:
    """Size and orientation from the header."""
    with open_picture(source, name) as image:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except UNREADABLE:  # broken EXIF says nothing; the pixels may still be fine
            orientation = 1
        return PictureHead(*image.size, orientation if orientation in range(1, 9) else 1)


def read_image(source: Path | bytes, name: str = "") -> Float[np.ndarray, "h w 3"]:
    """RGB, float32 in [0, 1], as stored; gray images get three equal channels, and what is transparent is black."""
    path = name or source
    with open_picture(source, name) as image:
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


def read_alpha(image: Image.Image) -> Float[np.ndarray, "h w"] | None:
    """Opacity of an opened picture as stored, float32 in [0, 1]; None for one that is opaque everywhere."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return alpha.astype(np.float32) / 255 if alpha.min(initial=255) < 255 else None


def quantize(images: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Round values in [0, 1] to the 256 levels of a file, so that what is in memory compares with what is on disk."""
    return (images.clamp(0, 1) * 255).round() / 255


def to_uint8(image: Float[Tensor, "channels h w"]) -> UInt8[np.ndarray, "h w channels"]:
    """Round values in [0, 1] to bytes, channels last."""
    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def write_png(path: Path, pixels: Float[Tensor, "h w *channels"]) -> None:
    """Write values in [0, 1] as PNG, atomically."""
    with write_atomically(path) as temporary:
        array = (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(array)).save(temporary)


def read_mask(path: Path) -> Float[np.ndarray, "h w"]:
    """Weights of pixels, float32 in [0, 1]: black is left out, white counts; a mask of labels 0 and 1 too.

    A color counts as its brightest channel, one of a palette with colors (a picture of labels) whole, and what is
    transparent is left out.
    """
    with open_picture(path) as image:
        try:
            is_deep = image.mode.startswith("I;16")
            values = np.asarray(image, dtype=np.float32) if is_deep else _brightness(image)
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as a mask: {error}") from None
    return values if values.max(initial=0) <= 1 else values / (65535 if is_deep else 255)


def _brightness(image: Image.Image) -> Float[np.ndarray, "h w"]:
    """Brightest channel from 0 to 255, times opacity."""
    alpha = read_alpha(image)
    if image.mode in ("1", "L", "I", "F") and alpha is None:
        return np.asarray(image.convert("L"), dtype=np.float32)
    rgb = np.asarray(image.convert("RGB"))
    brightest = rgb.max(axis=2)
    if image.mode == "P" and (rgb.min(axis=2) != brightest).any():
        brightest = (brightest > 0) * np.uint8(255)
    return brightest.astype(np.float32) if alpha is None else brightest * alpha


QUARTERS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}
"""Clockwise quarter turns that bring stored pixels upright, by EXIF orientation."""
MIRRORED = (2, 4, 5, 7)
"""Orientations that mirror the picture left to right, after the turn."""
SAME_SHAPE = 0.02


class Orientation(NamedTuple):
    """How a stored picture becomes the upright view."""

    before: int = 1
    """EXIF orientation to apply before the lens is taken out: the camera model is for the picture as it is shown."""
    quarters: int = 0
    """Clockwise quarter turns of the view and of its camera after that: the model is for pixels as they are stored."""
    is_guess: bool = False  # whether the shape of the picture did not tell which of the two it is


def orientation_of(head: PictureHead, width: int, height: int) -> Orientation:
    """Tell from a camera model's size for which pixels it is.

    A mirrored picture whose model is for stored pixels is only turned: the model's world is mirrored as well.
    """
    if head.orientation == 1:
        return Orientation()
    model, stored = width / height, head.width / head.height
    is_stored = abs(model / stored - 1) < SAME_SHAPE
    is_shown = abs(model * stored - 1) < SAME_SHAPE if head.orientation >= 5 else is_stored
    if is_shown and not is_stored:
        return Orientation(before=head.orientation)
    return Orientation(quarters=QUARTERS[head.orientation], is_guess=is_shown and is_stored)


def unexif(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels "h w ..." as they are to be shown."""
    turned = np.rot90(pixels, -QUARTERS[orientation])
    return np.ascontiguousarray(turned[:, ::-1] if orientation in MIRRORED else turned)


def turn_intrinsics(intrinsics: Float[np.ndarray, "3 3"], quarters: int, width: int, height: int) -> np.ndarray:
    """Intrinsics of a picture of this size after clockwise quarter turns."""
    for _ in range(quarters):
        (focal_x, _, center_x), (_, focal_y, center_y), _ = intrinsics.tolist()
        intrinsics = np.array([[focal_y, 0, height - center_y], [0, focal_x, center_x], [0, 0, 1]], np.float64)
        width, height = height, width
    return intrinsics


def turn_camera(camera_to_world: Float[Tensor, "4 4"], quarters: int) -> Float[Tensor, "4 4"]:
    """The pose of the camera whose pictures are turned clockwise: its right is what was up."""
    turn = torch.tensor([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).to(camera_to_world)
    # Not by the identity, which would change the sign of zeros and with it the hash of the capture.
    return camera_to_world @ torch.linalg.matrix_power(turn, quarters) if quarters else camera_to_world
