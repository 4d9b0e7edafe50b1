"""Pictures of a report: the page's assets (small copies, maps of changes), and labelled grids.

Assets are named by their content, so writing a report twice gives the same files, and none is ever half-new.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from restage.records import InputError, write_atomically

__all__ = ["AssetFolder", "colour_map", "compose_grid", "first_frame", "load_images", "read_mask", "read_picture"]

MAGMA_HEX = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
"""Nine even steps of the `magma` colour map (van der Walt and Smith, CC0), the same as in the page's legend."""

MAGMA_UINT8 = np.array([tuple(bytes.fromhex(colour)) for colour in MAGMA_HEX.split()], dtype=np.uint8)

LOSSLESS_PX = 256


def read_picture(path: Path, *, max_px: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture as RGB, made smaller if its longer side is above `max_px`."""
    return np.asarray(_open(path, "RGB", max_px))


def first_frame(path: Path) -> UInt8[np.ndarray, "height width 3"] | None:
    """The first frame of a clip; None if it cannot be decoded, since the clip is shown by its own player anyway."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "image2pipe"]
    done = subprocess.run([*command, "-c:v", "png", "-"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode or not done.stdout:
        return None
    with Image.open(io.BytesIO(done.stdout)) as opened:
        return np.asarray(opened.convert("RGB"))


def read_mask(path: Path, *, max_px: int | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a 0 / 255 mask; above half is true."""
    return np.asarray(_open(path, "L", max_px)) > 127


def _open(path: Path, mode: str, max_px: int | None) -> Image.Image:
    try:
        # No other file reaches Pillow, some of whose plugins run other programs.
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as opened:
            image = opened.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not readable as a picture ({type(error).__name__}); make it again") from None
    if max_px is not None:
        image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    return image


def colour_map(values: Float[np.ndarray, "height width"], *, top: float = 0.5) -> UInt8[np.ndarray, "height width 3"]:
    """Colour values in [0, top] from black to bright; values above are as bright as `top`."""
    position = np.clip(values / top, 0, 1) * (len(MAGMA_UINT8) - 1)
    lower = np.minimum(position.astype(np.int64), len(MAGMA_UINT8) - 2)
    share = (position - lower)[..., None]
    mixed = MAGMA_UINT8[lower] * (1 - share) + MAGMA_UINT8[lower + 1] * share
    return np.round(mixed).astype(np.uint8)


class AssetFolder:
    """The `assets/` folder beside the page: takes content in, gives relative paths back, drops what is not used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()

    def add_picture(self, picture_uint8: UInt8[np.ndarray, "height width 3"], label: str) -> str:
        """Store as WebP, without loss up to 256 pixels, and return the path relative to the page."""
        buffer = io.BytesIO()
        is_small = max(picture_uint8.shape[:2]) <= LOSSLESS_PX
        Image.fromarray(picture_uint8).save(buffer, "WEBP", lossless=is_small, quality=80 if is_small else 90, method=3)
        return self.add_bytes(buffer.getvalue(), label, suffix=".webp")

    def add_file(self, path: Path, label: str) -> str:
        """Store a copy of a file as it is and return the path relative to the page."""
        return self.add_bytes(path.read_bytes(), label, suffix=path.suffix.lower())

    def add_bytes(self, content: bytes, label: str, *, suffix: str) -> str:
        """Store bytes under a name made of the label's letters and the content's hash; the same bytes once."""
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60]
        name = f"{slug}-{hashlib.sha256(content).hexdigest()[:10]}{suffix}"
        self.used.add(name)
        if not (self.folder / name).exists():
            with write_atomically(self.folder / name) as temporary:
                temporary.write_bytes(content)
        return f"{self.folder.name}/{name}"

    def drop_unused(self) -> None:
        """Remove files of an older report that nothing points to any more."""
        for path in self.folder.glob("*"):
            if path.is_file() and path.name not in self.used:
                path.unlink()


def load_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures as RGB."""
    return [_open(path, "RGB", None) for path in paths]


def compose_grid(
    images: Sequence[Sequence[Image.Image | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell_px: int = 192,
    gap_px: int = 8,
    font_px: int = 15,
    background: str = "white",
) -> Image.Image:
    """Lay pictures out as rows and columns, labels above the columns and above each row.

    Pictures of any size keep their shape and are scaled to fit a square cell; shorter rows and None leave cells empty.
    A row label is set over its row, since instructions are long; one that is wider than the grid is broken into lines.
    The background is any colour that PIL knows; the text is black or white, whichever stands out.
    """
    num_rows, num_columns = len(images), max((len(row) for row in images), default=0)
    if num_columns == 0:
        raise InputError("a grid needs at least one picture, got none")
    for name, labels, expected in (("row", row_labels, num_rows), ("column", column_labels, num_columns)):
        if labels and len(labels) != expected:
            raise InputError(f"expected {expected} {name} labels or none, got {len(labels)}")
    font = ImageFont.load_default(font_px)
    width = gap_px + num_columns * (cell_px + gap_px)
    wrapped = [_wrap(label, font, width - 2 * gap_px) for label in row_labels] or [[] for _ in images]
    line_px = round(font_px * 1.4)
    tops, y = [], gap_px + (line_px + gap_px // 2 if column_labels else 0)
    for lines in wrapped:
        tops.append(y)
        y += len(lines) * line_px + cell_px + gap_px
    grid = Image.new("RGB", (width, y), background)
    draw = ImageDraw.Draw(grid)
    ink = "black" if sum(ImageColor.getrgb(background)[:3]) > 382 else "white"
    for column, label in enumerate(column_labels):
        centre = gap_px + column * (cell_px + gap_px) + cell_px / 2
        draw.text((centre, gap_px), label, fill=ink, font=font, anchor="ma")
    for row, lines, top in zip(images, wrapped, tops, strict=True):
        for index, line in enumerate(lines):
            draw.text((gap_px, top + index * line_px), line, fill=ink, font=font)
        for column, image in enumerate(row):
            if image is not None:
                scale = cell_px / max(image.size)
                size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
                fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                left = gap_px + column * (cell_px + gap_px) + (cell_px - size[0]) // 2
                grid.paste(fitted, (left, top + len(lines) * line_px + (cell_px - size[1]) // 2))
    return grid


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
