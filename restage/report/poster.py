"""A figure for a poster, as PDF and PNG: edits before and after, and how methods compare, to be read from two meters.

It is as wide as one of three columns of an A0 sheet (26 cm), and its smallest letters are 22 points high.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from restage.records import InputError, write_atomically
from restage.report.gallery import spread
from restage.report.pictures import load_images
from restage.report.summary import Summary
from restage.report.teaser import Wipe, drawable, find_wipes
from restage.report.words import quoted
from restage.scores.definitions import METRICS

__all__ = ["write_poster"]

WIDTH_IN = 10.25
DPI = 200
LARGE_PT, SMALL_PT = 28, 22
LINE_IN = 0.42
MAX_EDITS, MAX_METHODS, MAX_LINES = 4, 6, 3
INK, SOFT, ACCENT = "#191a1c", "#5c5e62", "#a63d1e"


def write_poster(summary: Summary, folder: Path) -> Iterator[str]:
    """Write `poster.pdf` and `poster.png`; yields their names.

    Raises:
        InputError: no edit of the run has pictures before and after.
    """
    wipes = spread(find_wipes(summary.contents), MAX_EDITS)
    if not wipes:
        raise InputError(f"{summary.contents.path} has no edit with pictures before and after for a poster")
    figure = _draw(summary, wipes)
    for form, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=metadata, dpi=DPI)
        path = folder / f"poster.{form}"
        with write_atomically(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        yield path.name


def _draw(summary: Summary, wipes: list[Wipe]) -> Any:
    from matplotlib.figure import Figure

    rows = [row for row in summary.rows if not row.is_anchor and row.estimates["progress"].num_scored][:MAX_METHODS]
    middles = [len(wipe.after) // 2 for wipe in wipes]
    shown = [load_images([wipe.before[index], wipe.after[index]]) for wipe, index in zip(wipes, middles, strict=True)]
    texts = [_wrapped(wipe.instruction) for wipe in wipes]
    heights = [
        LINE_IN * (len(text) + 1.2) + WIDTH_IN / 2 * images[1].height / images[1].width
        for text, images in zip(texts, shown, strict=True)
    ]
    chart_in = 1.9 + 0.75 * len(rows) if rows else 0.0
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + chart_in))
    total, top = sum(heights) + chart_in, sum(heights) + chart_in
    for text, images, height in zip(texts, shown, heights, strict=True):
        figure.text(
            0.5,
            (top - 0.1) / total,
            "\n".join(text),
            ha="center",
            va="top",
            fontsize=LARGE_PT,
            color=INK,
            style="italic",
            parse_math=False,
        )
        picture_in = height - LINE_IN * (len(text) + 1.2)
        for column, (image, name) in enumerate(zip(images, ("before", "after"), strict=True)):
            place = (0.5 * column + 0.01, (top - height + LINE_IN) / total, 0.48, picture_in / total)
            axes = figure.add_axes(place)
            axes.imshow(np.asarray(image), interpolation="lanczos")
            axes.set_axis_off()
            figure.text(
                0.5 * column + 0.25,
                (top - height + LINE_IN - 0.02) / total,
                name,
                ha="center",
                va="top",
                fontsize=SMALL_PT,
                color=SOFT,
            )
        top -= height
    if rows:
        axes = figure.add_axes((0.42, 1.15 / total, 0.5, (chart_in - 1.9) / total))
        _draw_bars(axes, rows, summary)
    return figure


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(drawable(quoted(text)), 40, max_lines=MAX_LINES, placeholder="\N{HORIZONTAL ELLIPSIS}")


def _draw_bars(axes: Any, rows: list[Any], summary: Summary) -> None:
    """Progress of each method, with its standard error, the best on top and in color."""
    found = [row.estimates["progress"] for row in rows]
    standing = summary.standings["progress"]
    colors = [ACCENT if standing.get((row.method, row.editor)) == "best" else "#b9b7b0" for row in rows]
    errors = [0.0 if one.standard_error != one.standard_error else one.standard_error for one in found]
    places = np.arange(len(rows))[::-1]
    axes.barh(
        places,
        [one.mean for one in found],
        xerr=errors,
        color=colors,
        height=0.66,
        error_kw={"elinewidth": 3, "ecolor": INK},
    )
    names = [
        f"{row.method}\n{row.editor}" if sum(other.method == row.method for other in rows) > 1 else row.method
        for row in rows
    ]
    axes.set_yticks(places, [drawable(line) for line in names], fontsize=SMALL_PT, color=INK, parse_math=False)
    axes.tick_params(axis="x", labelsize=SMALL_PT, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=INK, linewidth=2)
    axes.set_xlabel(f"{METRICS['progress'].label}: 0 nothing, 1 the truth", fontsize=SMALL_PT, color=INK)
    axes.set_title("On views that were held out", fontsize=LARGE_PT, color=INK, x=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
