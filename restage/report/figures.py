"""Composes pictures into one labelled grid, such as before / after / truth strips for a README or a paper.

Uses the font that comes with PIL, so the same pictures give the same bytes on any machine with the same PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from restage.records import InputError

__all__ = ["compose_grid", "load_images"]


def load_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures as RGB.

    Raises:
        InputError: one is missing or not a picture.
    """
    images = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                images.append(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"{path} is missing or not a picture; give the path of a PNG or JPEG file") from None
    return images


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

    Pictures keep their shape and are scaled to fit a square cell; shorter rows and None leave cells empty. A row label
    is set over its row, since instructions are long; one that is wider than the grid is broken into lines.

    Args:
        images: rows of pictures, of any size.
        row_labels: one per row, or none.
        column_labels: one per column, or none.
        cell_px: side of a cell.
        gap_px: space between cells and around the grid.
        font_px: size of the text.
        background: any colour that PIL knows by name or `#rrggbb`; the text is black or white, whichever stands out.

    Raises:
        InputError: no picture, or the number of labels is not that of rows or columns.
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
                corner = gap_px + column * (cell_px + gap_px), top + len(lines) * line_px
                _paste_centred(grid, image, corner, cell_px)
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


def _paste_centred(grid: Image.Image, image: Image.Image, corner: tuple[int, int], cell_px: int) -> None:
    scale = cell_px / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    grid.paste(fitted, (corner[0] + (cell_px - size[0]) // 2, corner[1] + (cell_px - size[1]) // 2))
