"""The page of pictures beside the figures: samples with what is wrong marked, word masks, and edits beside their truth.

Everything is PNG, so that a README can show it; `index.html` puts it on one page that opens from disk.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from benchmarks.miniature.edits import EditedCase
from benchmarks.miniature.text_to_image import Sample
from benchmarks.miniature.verdicts import Verdict
from restage.records import write_atomically
from restage.report.pictures import compose_grid
from restage.world.description import Description

__all__ = ["Card", "card_of", "draw_cards", "draw_edits", "draw_word_masks", "wrong_words", "write_page"]

TIME_WORDS = {"noon", "sunset", "night", "fog", "sunny", "golden", "evening", "dark", "foggy"}
INK, FAINT, WRONG = "#202020", "#8a8a8a", "#d1161b"


class Card(NamedTuple):
    """A picture with the words under it."""

    image: Image.Image
    words: tuple[tuple[str, bool], ...]
    """The caption, word by word, and whether the picture shows it wrong."""
    note: str
    """What the probe sees instead; empty where all is right."""


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """A picture in [0, 1] as 8 bits."""
    return Image.fromarray((image.permute(1, 2, 0).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))


def wrong_words(verdict: Verdict, description: Description) -> set[str]:
    """Words of the caption that the picture does not follow."""
    wrong = {kind for kind, is_there in verdict.kinds_there.items() if not is_there}
    wrong |= {item.color for item in description.objects if not verdict.colors.get(item.kind, True)}
    if not verdict.ground:
        wrong.add(description.ground)
    return wrong if verdict.time else wrong | TIME_WORDS


def card_of(sample: Sample) -> Card:
    """The card of a sampled picture: its caption with what is wrong marked, and what the probe sees."""
    wrong = wrong_words(sample.verdict, sample.item.description)
    words = tuple((word, word.strip(",") in wrong) for word in sample.item.caption.split())
    objects = ", ".join(f"{color} {kind}" for kind, color in sample.seen.colors.items())
    notes = []
    if not sample.verdict.is_all_right:
        notes.append(f"reads: {objects or 'no object'}; {sample.seen.ground}, {sample.seen.time}")
    if not sample.verdict.count:
        notes.append(f"{sample.seen.count} objects")
    if sample.is_place_right is False:
        notes.append("another place")
    return Card(to_pil(sample.image), words, "; ".join(notes))


def _lay_out(
    words: Sequence[tuple[str, str]], font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width_px: float
) -> list[list[tuple[str, str]]]:
    """Break colored words into lines."""
    lines: list[list[tuple[str, str]]] = [[]]
    for word, ink in words:
        if lines[-1] and font.getlength(" ".join([*(w for w, _ in lines[-1]), word])) > width_px:
            lines.append([])
        lines[-1].append((word, ink))
    return lines


def draw_cards(cards: Sequence[Card], *, columns: int = 6, cell_px: int = 192, gap_px: int = 14) -> Image.Image:
    """Lay cards out in rows; a card with something wrong has a red edge, wrong words are red."""
    font, line_px = ImageFont.load_default(14), 19
    texts = []
    for card in cards:
        words = [(word, WRONG if is_wrong else INK) for word, is_wrong in card.words]
        notes = [(word, FAINT) for word in card.note.split()]
        texts.append([*_lay_out(words, font, cell_px), *(_lay_out(notes, font, cell_px) if notes else [])])
    rows = [range(start, min(start + columns, len(cards))) for start in range(0, len(cards), columns)]
    heights = [cell_px + 8 + line_px * max(len(texts[i]) for i in row) + gap_px for row in rows]
    sheet = Image.new("RGB", (gap_px + columns * (cell_px + gap_px), gap_px + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap_px
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = gap_px + column * (cell_px + gap_px)
            if cards[index].note:
                draw.rectangle((left - 4, top - 4, left + cell_px + 3, top + cell_px + 3), fill=WRONG)
            sheet.paste(cards[index].image.resize((cell_px, cell_px), Image.Resampling.LANCZOS), (left, top))
            for number, line in enumerate(texts[index]):
                x, y = float(left), top + cell_px + 7 + number * line_px
                for word, ink in line:
                    draw.text((x, y), word, fill=ink, font=font)
                    x += font.getlength(word + " ")
        top += height
    return sheet


def _outlined(image: Float[Tensor, "3 h w"], mask: Bool[Tensor, "cells cells"], ink: Sequence[float]) -> Tensor:
    """A picture with the edge of a mask drawn on it, and what lies outside dimmed."""
    inside = functional.interpolate(mask[None, None].float(), image.shape[1:], mode="nearest")
    edge = (functional.max_pool2d(inside, 5, 1, 2) - inside)[0, 0] > 0
    dimmed = image * (0.45 + 0.55 * inside[0])
    return torch.where(edge, torch.tensor(ink)[:, None, None], dimmed)


def draw_word_masks(samples: Sequence[Sample], *, rows: int = 6) -> Image.Image | None:
    """Pictures of two objects or more: the attention of each object's word, its mask, the object; None without any."""
    pictures, labels = [], []
    for sample in [item for item in samples if len(item.words) > 1 and item.words[0].truth is not None][:rows]:
        row = [to_pil(sample.image)]
        for word in sample.words[:2]:
            heat = functional.interpolate((word.attention / word.attention.amax())[None, None], 128, mode="bilinear")[0]
            truth = torch.zeros_like(word.mask) if word.truth is None else word.truth
            row += [
                to_pil(sample.image * 0.35 + 0.65 * heat),
                to_pil(_outlined(sample.image, word.mask, (1.0, 0.85, 0.0))),
                to_pil(_outlined(sample.image, truth, (0.2, 1.0, 0.4))),
            ]
        pictures.append(row)
        labels.append(f"{sample.item.caption}  ({', '.join(word.kind for word in sample.words[:2])})")
    columns = ["sample", *(["attention", "its mask", "object (probe)"] * 2)]
    return compose_grid(pictures, row_labels=labels, column_labels=columns, cell_px=144) if pictures else None


def draw_edits(edits: Sequence[EditedCase], *, rows: int = 28) -> Image.Image:
    """Two edits per row: before, edited with its mask, truth."""
    halves = [[to_pil(image) for image in (e.case.before, e.kept, e.case.after)] for e in edits[:rows]]
    texts = [f"{e.case.edit.instruction} ({e.progress:.2f})" for e in edits[:rows]]
    pictures = [halves[i] + (halves[i + 1] if i + 1 < len(halves) else []) for i in range(0, len(halves), 2)]
    labels = [" | ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]
    columns = ["before", "edited", "truth"] * (2 if len(halves) > 1 else 1)
    return compose_grid(pictures, row_labels=labels, column_labels=columns, cell_px=128)


_HTML = """<!doctype html><meta charset="utf-8"><title>The miniature's models</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1280px;color:#202020}}
img{{max-width:100%}}table{{border-collapse:collapse}}td,th{{padding:.15rem .8rem;text-align:right}}
td:first-child,th:first-child{{text-align:left}}tr:nth-child(even){{background:#f4f4f4}}.short{{color:#d1161b}}</style>
<h1>The miniature's models</h1><p>{what}</p>
<table><tr><th>figure</th><th>measured</th><th>wanted</th></tr>{rows}</table>
{pictures}"""


def write_page(
    folder: Path,
    figures: Mapping[str, tuple[float, str, bool]],
    pictures: Mapping[str, Image.Image],
    *,
    what: str,
) -> None:
    """Write `index.html` and its pictures.

    Args:
        folder: Where to write; made if it is missing.
        figures: For each figure its value, what is wanted, and whether it falls short.
        pictures: By title.
        what: What was measured, in one sentence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for title, picture in pictures.items():
        name = f"{title.replace(' ', '_')}.png"
        with write_atomically(folder / name) as temporary:
            picture.save(temporary)
        shown.append(f'<h2>{html.escape(title)}</h2><img src="{name}" alt="{html.escape(title)}">')
    rows = [
        f"<tr{' class=short' if is_short else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, f"{value:.3f}", wanted))
        + "</tr>"
        for name, (value, wanted, is_short) in figures.items()
    ]
    with write_atomically(folder / "index.html") as temporary:
        temporary.write_text(_HTML.format(what=html.escape(what), rows="".join(rows), pictures="".join(shown)))
