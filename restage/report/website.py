"""A project page for a paper, as a folder that GitHub Pages serves as it is: `<run>/report/website`.

Texts come from the paper's file, everything else from the run. No request leaves the folder, which stays below 20 MB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from restage.records import InputError, write_atomically
from restage.report.clips import clip_sections
from restage.report.gallery import spread
from restage.report.paper import Paper
from restage.report.pictures import AssetFolder, read_picture
from restage.report.read import EditEntry, ReportConfig, RunContents
from restage.report.summary import Summary, cell_parts
from restage.report.teaser import best_result, find_wipes, write_teaser
from restage.report.templates import open_template
from restage.report.turn import SceneStore, TurnableEdit

__all__ = ["MAX_WEBSITE_BYTES", "write_website"]

MAX_WEBSITE_BYTES = 20_000_000
MAX_TURN_BYTES = 10_000_000
"""For scenes to be turned around; edits beyond it are shown by their pictures."""


class ShownEdit(NamedTuple):
    """What the website shows of one edit: its best method."""

    entry: EditEntry
    method: str
    views: list[tuple[str, str]]  # pictures before and after
    width: int
    height: int
    turnable: TurnableEdit | None


def write_website(summary: Summary, folder: Path, *, config: ReportConfig, paper: Paper | None) -> Iterator[str]:
    """Write the folder, the page last; yields what is being done.

    Raises:
        InputError: the folder would be 20 MB or more, or a file that the paper names is no picture.
    """
    contents, paper = summary.contents, paper or Paper()
    assets = AssetFolder(folder / "assets")
    edits = []
    for edit in _edits(contents, assets, config):
        edits.append(edit)
        yield edit.entry.request.instruction
    teaser = _teaser(contents, assets)
    clips = clip_sections(contents.path, assets)
    figure = paper.folder / paper.method_figure if paper.method_figure else None
    page = open_template("website.html", ["page.css", "website.css"]).render(
        paper=paper,
        buttons={name: _stored(paper, target, assets) for name, target in paper.buttons.items()},
        authors=[(author, _stored(paper, author.website, assets)) for author in paper.authors],
        figure=assets.add_picture(read_picture(figure, max_px=1600), "method") if figure else None,
        teaser=teaser,
        edits=edits,
        clips=clips,
        table=_table(summary),
        summary=summary,
    )
    stored = [*(folder / "assets" / name for name in assets.used)]
    num_bytes = len(page.encode()) + sum(path.stat().st_size for path in stored)
    if num_bytes >= MAX_WEBSITE_BYTES:
        raise InputError(
            f"the website would have {num_bytes / 1e6:.1f} MB, and at most {MAX_WEBSITE_BYTES / 1e6:g} are wanted; "
            "lower --max-edits, --max-views or --max-px"
        )
    for name, text in ((".nojekyll", ""), ("index.html", page)):
        with write_atomically(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    assets.drop_unused()
    yield "website/index.html"


def _stored(paper: Paper, target: str, assets: AssetFolder) -> str:
    """A web address as it is; a file is copied, and its place among the assets returned."""
    if not target or urlsplit(target).scheme in ("http", "https"):
        return target
    return assets.add_file(paper.folder / target, Path(target).stem)


def _edits(contents: RunContents, assets: AssetFolder, config: ReportConfig) -> Iterator[ShownEdit]:
    store, left = SceneStore(assets, 0), MAX_TURN_BYTES
    clips = {clip.name for clip in contents.clips}
    shown = [entry for entry in contents.edits if entry.has_pictures and entry.scene not in clips]
    for number, entry in enumerate(spread(shown, config.max_edits), start=1):
        result = best_result(entry, contents)
        if result is None:
            continue
        names = spread([view for view in result.held_out if view in entry.before], config.max_views)
        views = []
        for view in names:
            pair = [
                (label, read_picture(path, max_px=config.max_px))
                for label, path in (("before", entry.before[view]), ("after", result.held_out[view]))
            ]
            before, after = (assets.add_picture(picture, f"edit-{number}-{view}-{label}") for label, picture in pair)
            views.append((before, after))
        first = read_picture(result.held_out[names[0]], max_px=config.max_px) if names else None
        turnable = None
        if left > 0:
            place = contents.path / "scenes" / entry.scene
            turnable = store.store_edit(place, [contents.path / result.folder], chosen=0, views=names)
            left = MAX_TURN_BYTES - sum(scene.num_bytes for scene in store.packed.values() if scene)
        height, width = first.shape[:2] if first is not None else (1, 1)
        method = result.method if result.editor in ("", "none") else f"{result.method} with {result.editor}"
        if views or turnable:
            yield ShownEdit(entry, method, views, width, height, turnable)


def _teaser(contents: RunContents, assets: AssetFolder) -> tuple[str, str] | None:
    if not find_wipes(contents):
        return None
    with tempfile.TemporaryDirectory() as folder:
        film, poster = write_teaser(contents, Path(folder) / "teaser.mp4")
        return assets.add_file(film, "teaser"), assets.add_file(poster, "teaser")


def _table(summary: Summary) -> list[dict[str, Any]]:
    """The rows of the results table: names, and for each metric mean, error and standing."""
    return [
        {
            "row": row,
            "cells": [
                (*cell_parts(row.estimates[name], name), summary.standings[name].get((row.method, row.editor), ""))
                for name in summary.metrics
            ],
        }
        for row in summary.rows
    ]
