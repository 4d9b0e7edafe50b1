"""The contact sheet: some accepted and some rejected pairs side by side, with captions and reasons."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from restage.pairs.encoding import load_picture, to_uint8
from restage.pairs.store import PREVIEW
from restage.records import write_atomically

__all__ = ["make_preview", "write_sheet"]

THUMBNAIL_PX = 112
CELL_PX = (3 * THUMBNAIL_PX + 12, THUMBNAIL_PX + 64)
NUM_COLUMNS = 3
MAX_CELLS = 18
"""Number of cells for accepted pairs, and for rejected ones."""
INK, FAINT, ACCEPTED, REJECTED, PAPER = "#1d1d1f", "#6b6b70", "#1a7f45", "#b3261e", "#ffffff"


def make_preview(
    source: Float[Tensor, "3 height width"],
    edited: Float[Tensor, "3 height width"],
    mask: Float[Tensor, "height width"],
) -> bytes:
    """Draw source, edited picture and mask small in a row, as JPEG (a sixth of the size of PNG)."""
    row = Image.new("RGB", (3 * THUMBNAIL_PX, THUMBNAIL_PX))
    for column, image in enumerate((source, edited, mask.expand(3, -1, -1))):
        thumbnail = Image.fromarray(to_uint8(image)).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
        row.paste(thumbnail, (column * THUMBNAIL_PX, 0))
    buffer = io.BytesIO()
    row.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _draw_cell(sheet: Image.Image, row: Mapping[str, Any], at: tuple[int, int]) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), at
    sheet.paste(load_picture(row[PREVIEW], "a preview"), at)
    found = (row.get(f"{name}_similarity") for name in ("direction", "image"))
    scores = "direction {:.2f}, pictures {:.2f}".format(*(math.nan if value is None else value for value in found))
    reason = row["reason"]
    lines = (
        (row["instruction"], INK, 13),
        (f"{row['source_caption']}  >  {row['target_caption']}", FAINT, 10),
        (f"{reason}: {scores}", REJECTED, 11) if reason else (scores, ACCEPTED, 11),
    )
    y = top + THUMBNAIL_PX + 4
    for text, color, size in lines:
        shown = textwrap.shorten(text, round((CELL_PX[0] - 12) / (0.52 * size)), placeholder="...")
        draw.text((left, y), shown, fill=color, font=ImageFont.load_default(size))
        y += size + 5


def write_sheet(path: Path, groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Write pairs as one PNG, group below group; a group is a title, and sidecar rows with their previews."""
    num_rows = [-(-len(cells) // NUM_COLUMNS) for _, cells in groups]
    height = sum(34 + count * CELL_PX[1] for count in num_rows) + 12
    sheet = Image.new("RGB", (NUM_COLUMNS * CELL_PX[0] + 12, height), PAPER)
    top = 8
    for (title, cells), count in zip(groups, num_rows, strict=True):
        ImageDraw.Draw(sheet).text((12, top), title, fill=INK, font=ImageFont.load_default(18))
        top += 30
        for index, row in enumerate(cells):
            row_index, column = divmod(index, NUM_COLUMNS)
            _draw_cell(sheet, row, (12 + column * CELL_PX[0], top + row_index * CELL_PX[1]))
        top += count * CELL_PX[1] + 4
    with write_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
