"""A teaser of a run's edits as a short film: a line wipes from before to after, with the instruction above.

H.264, yuv420p, a constant rate and even sizes, so that it plays in browsers, slides and video editors alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from restage.clips.files import open_clip
from restage.clips.films import write_film
from restage.records import InputError, write_atomically
from restage.report.gallery import spread
from restage.report.pictures import load_images
from restage.report.read import EditEntry, ResultEntry, RunContents
from restage.report.words import quoted
from restage.run.layout import CLIP_FRAMES
from restage.scenes.io.images import list_images
from restage.scores.tables import anchor_note, method_table

__all__ = ["Wipe", "best_result", "drawable", "find_wipes", "write_teaser"]

FRAMES_PER_S = 24.0
SECONDS_PER_EDIT = 3.0
HEIGHT_PX, BAR_PX = 512, 72
MAX_EDITS = 8
"""Evenly spaced over all; half a minute is long for a teaser."""
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Comes with matplotlib, whose own default it is."""
INK, PAPER, ACCENT = "#ecebe7", "#131416", "#f0885f"


class Wipe(NamedTuple):
    """What one edit's part shows: as many pictures before as after, taken in turn."""

    instruction: str
    before: Sequence[Path]
    after: Sequence[Path]


def drawable(text: str) -> str:
    """The text with a replacement character for each that the font lacks."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(FONT)).get_charmap()
    return "".join(
        character if character.isspace() or ord(character) in known else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def best_result(entry: EditEntry, contents: RunContents) -> ResultEntry | None:
    """The result of the method that ranks first over the run, if it has pictures of this edit; anchors come last."""
    rows = method_table(contents.scores)
    order = {(row.method, row.editor): place for place, row in enumerate(rows)}
    shown = [result for result in entry.results if not result.problem and result.method != "nothing"]
    return min(
        shown,
        key=lambda one: (bool(anchor_note(one.method, one.editor)), order.get((one.method, one.editor), len(order))),
        default=None,
    )


def find_wipes(contents: RunContents) -> list[Wipe]:
    """What there is to show of the edits of a run, of scenes and of clips, each by its best method."""
    wipes = []
    for entry in contents.edits:
        result = best_result(entry, contents)
        if result is None:
            continue
        views = [view for view in result.held_out if view in entry.before]
        views = views[len(views) // 2 :][:1]  # one view: a camera that jumps hides what the wipe shows
        before, after = [entry.before[view] for view in views], [result.held_out[view] for view in views]
        if any(clip.name == entry.scene for clip in contents.clips):
            frames = contents.path / result.folder / CLIP_FRAMES
            after = list_images(frames) if frames.is_dir() else []
            before = list(open_clip(contents.path / "scenes" / entry.scene).frame_paths)[: len(after)]
        if after and len(before) == len(after):
            wipes.append(Wipe(entry.request.instruction, before, after))
    return spread(wipes, MAX_EDITS)


def write_teaser(contents: RunContents, target: Path) -> Iterator[Path]:
    """Write the film, and its frame in the middle of the first wipe as a JPEG beside it, to show until it plays.

    Raises:
        InputError: no edit of the run has pictures before and after.
    """
    wipes = find_wipes(contents)
    if not wipes:
        raise InputError(f"{contents.path} has no edit with pictures before and after, which a teaser is made of")
    (first,) = load_images([wipes[0].after[0]])
    # Even sides, and neither so narrow that no instruction fits nor wider than a screen.
    width = 2 * round(min(max(HEIGHT_PX * first.width / first.height, 480), 1280) / 2)
    write_film(target, _frames(wipes, width), frames_per_s=FRAMES_PER_S)
    yield target
    poster = target.with_suffix(".jpg")
    with write_atomically(poster) as temporary:
        _frame(wipes[0], 0.5, width).save(temporary, "JPEG", quality=88)
    yield poster


def _frames(wipes: Sequence[Wipe], width: int) -> Iterator[Float[Tensor, "3 height width"]]:
    count = round(FRAMES_PER_S * SECONDS_PER_EDIT)
    for wipe in wipes:
        for index in range(count):
            frame = np.asarray(_frame(wipe, index / (count - 1), width), dtype=np.float32) / 255
            yield torch.from_numpy(frame).permute(2, 0, 1)


def _frame(wipe: Wipe, time: float, width: int) -> Image.Image:
    """One frame at a time from 0 to 1: a fifth of it before, a wipe, and the rest after."""
    index = min(int(time * len(wipe.after)), len(wipe.after) - 1)
    share = min(max((time - 0.2) / 0.55, 0.0), 1.0)
    split = round(width * (1 - math.cos(math.pi * share)) / 2)
    before, after = (_fitted(image, width) for image in load_images([wipe.before[index], wipe.after[index]]))
    frame = Image.new("RGB", (width, HEIGHT_PX + BAR_PX), PAPER)
    frame.paste(before, (0, BAR_PX))
    frame.paste(after.crop((0, 0, split, HEIGHT_PX)), (0, BAR_PX))
    draw = ImageDraw.Draw(frame)
    if 0 < split < width:
        draw.line((split, BAR_PX, split, HEIGHT_PX + BAR_PX - 1), fill="white", width=3)
    # Players lay their controls over the lower edge, so words and progress go above.
    draw.rectangle((0, BAR_PX - 4, split, BAR_PX - 1), fill=ACCENT)
    text, font = _fitted_text(quoted(wipe.instruction), width - 32)
    draw.text((width / 2, BAR_PX / 2 - 2), text, fill=INK, font=font, anchor="mm")
    return frame


def _fitted(image: Image.Image, width: int) -> Image.Image:
    """The picture as large as it fits, in the middle, on the paper's color."""
    scale = min(width / image.width, HEIGHT_PX / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (width, HEIGHT_PX), PAPER)
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (HEIGHT_PX - size[1]) // 2))
    return canvas


def _fitted_text(line: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text in one line with the largest font that holds it; one that is too long even then is cut."""
    line = drawable(line)
    font = ImageFont.truetype(str(FONT), 30)
    for size in (30, 26, 22, 18):
        font = ImageFont.truetype(str(FONT), size)
        if font.getlength(line) <= width:
            return line, font
    while line and font.getlength(f"{line}\N{HORIZONTAL ELLIPSIS}") > width:
        line = line[:-1]
    return f"{line}\N{HORIZONTAL ELLIPSIS}", font
