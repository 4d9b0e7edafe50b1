"""Writes `<run>/report/index.html` and its assets from the files of a run; a pure reader of everything else.

`restage.report.stage` calls `write_page` with what `read_contents` found.
"""

from __future__ import annotations

import importlib.resources
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from restage.records import file_sha256, write_atomically
from restage.report import words
from restage.report.gallery import EditSection, edit_sections, spread
from restage.report.pictures import AssetFolder, read_picture
from restage.report.read import ReportConfig, RunContents, SceneEntry, find_figure
from restage.report.trace import rows_data, trace_results
from restage.report.words import interval_mark, loss_curve
from restage.run.folder import RunFolder
from restage.run.layout import PAGE, SCORES
from restage.scores.definitions import METRICS
from restage.scores.tables import further_metrics, gaps_to_best, headline_of, measured_columns, method_table

__all__ = ["write_page"]

DOWNLOADS = (("latex", "LaTeX", "paper/paper.tex"), ("slides", "Slides", "slides.pptx"))
"""What the page links to: the form, its name, and where it lies beside the page."""


class FittedScene(NamedTuple):
    """What the page shows of a fitted scene."""

    name: str
    psnr_db: float
    facts: Sequence[tuple[str, Any]]
    picture: str | None
    render: str | None
    view: str
    record: Mapping[str, Any]
    """All of its `fit.json`."""


def write_page(contents: RunContents, config: ReportConfig, run: RunFolder | None) -> Iterator[EditSection]:
    """Write assets, then the page, then drop what an older page left; yields each edit when its pictures are stored."""
    page_path = contents.path / PAGE
    assets = AssetFolder(page_path.with_name("assets"))
    sections = []
    for section in edit_sections(contents, assets, config):
        sections.append(section)
        yield section
    page = _environment().get_template("page.html").render(**_page_values(contents, sections, assets, config, run))
    # The page comes after the pictures that it shows, and goes on showing the old ones until it is there.
    with write_atomically(page_path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    assets.drop_unused()


def _environment() -> jinja2.Environment:
    package = importlib.resources.files("restage.report")
    sources = {name: package.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "parts.html")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"duration": words.unbroken_duration, "words": words.as_words, "plain": words.as_text}
    environment.filters.update(filters, pretty=words.as_json, number=words.format_number)
    environment.globals.update(
        style=Markup(package.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(package.joinpath("page.js").read_text(encoding="utf-8")),
        interval_mark=interval_mark,
        is_number=lambda value: math.isfinite(value),
    )
    return environment


def _page_values(
    contents: RunContents, sections: list[EditSection], assets: AssetFolder, config: ReportConfig, run: RunFolder | None
) -> dict[str, Any]:
    rows = method_table(contents.scores, noop_progress=config.noop_progress)
    progress = [row.estimates["progress"].mean for row in rows]
    pairs = contents.pairs
    headline = headline_of(contents.scores)
    facts = {name: mark.facts for name, mark in contents.stages.items()}
    traces = trace_results(contents)
    names = {(entry.scene, name): entry.edit for entry in contents.edits for name in entry.names}
    instructions = {(entry.scene, name): entry.request.instruction for entry in contents.edits for name in entry.names}
    return {
        "contents": contents,
        "sentence": describe(contents, sections),
        "is_miniature": contents.is_miniature,
        "headline": headline,
        "headline_instruction": instructions.get((headline.scene, headline.edit), headline.edit) if headline else "",
        "wall_s": wall_seconds(contents, run),
        "hardware": words.hardware_in_words(contents.record.machine),
        "sections": sections,
        "num_edits": sum(edit.has_pictures for edit in contents.edits),
        "rows": rows,
        "metrics": METRICS,
        "columns": measured_columns(rows, "page"),
        "further": further_metrics(rows),
        "gaps": gaps_to_best(rows, contents.scores),
        "traces": traces,
        "rows_data": rows_data(contents.scores, traces, names),
        "scores_sha256": file_sha256(scores_path) if (scores_path := contents.path / SCORES).exists() else "",
        "diagnosis": contents.diagnosis,
        "diagnosis_plain": contents.diagnosis_plain,
        "diagnosis_figure": assets.add_file(figure, "diagnosis") if (figure := find_figure(contents)) else None,
        "scale_low": min([0.0, *(max(value, -1.0) for value in progress if math.isfinite(value))]),
        "pairs": pairs,
        "pairs_rule": facts.get("pairs", {}).get("rule", ""),
        "pairs_facts": facts.get("pairs", {}),
        "sheet": assets.add_file(pairs.sheet_path, "contact-sheet") if pairs and pairs.sheet_path else None,
        "train": contents.train,
        "train_facts": facts.get("train", {}),
        "curve": loss_curve(contents.train),
        "scenes": [_fitted_scene(scene, assets, config.max_px) for scene in contents.scenes],
        "downloads": {name: path for form, name, path in DOWNLOADS if form in config.formats},
        "command": shlex.join(contents.record.command),
    }


def describe(contents: RunContents, sections: list[EditSection]) -> str:
    """One sentence of what was run, from what is there."""
    competitors = {method.method for section in sections for method in section.methods} - {"nothing"}
    num_views = {len(result.held_out) for edit in contents.edits for result in edit.results}
    kind = "miniature " if contents.is_miniature else ""
    if not sections:
        return f"A run with {words.count_of(len(contents.scenes), kind + 'scene')} and no edit yet."
    scenes = words.count_of(len({section.entry.scene for section in sections}), kind + "scene")
    methods = words.count_of(len(competitors), "method")
    text = f"{words.count_of(len(sections), 'edit')} of {scenes} by text, with {methods}"
    if contents.scores:
        views = words.count_of(max(num_views), "held\N{NON-BREAKING HYPHEN}out view")
        text += f", scored on {views} each"
        text += " against exact truth" if contents.has_truth else ""
    return text[0].upper() + text[1:] + "."


def wall_seconds(contents: RunContents, run: RunFolder | None) -> float:
    """Seconds of work in the run: its closed sessions, and the one that is going on; NaN when nothing says."""
    # A clock that was set back in between must not make a run shorter than its closed sessions.
    running_s = max(0.0, time.time() - run.started_s) if run is not None else 0.0
    closed_s = sum(max(0.0, session.wall_s) for session in contents.record.sessions)
    return closed_s + running_s or math.nan


def _fitted_scene(scene: SceneEntry, assets: AssetFolder, max_px: int) -> FittedScene:
    shared = [view for view in scene.renders if view in scene.pictures]
    view = shared[len(shared) // 2] if shared else next(iter(spread(list(scene.pictures), 1)), "")

    def stored(paths: Mapping[str, Path], label: str) -> str | None:
        if view not in paths:
            return None
        return assets.add_picture(read_picture(paths[view], max_px=max_px), f"scene-{scene.name}-{label}")

    facts = [(key, value) for key, value in scene.plain.items() if isinstance(value, int | float) and "psnr" not in key]
    facts = [(key, max(value, 0) if key == "seconds" else value) for key, value in facts]
    psnr_db = scene.fit.held_out_psnr_db if scene.fit else None
    return FittedScene(
        name=scene.name,
        psnr_db=math.nan if psnr_db is None else psnr_db,
        facts=facts,
        picture=stored(scene.pictures, "picture"),
        render=stored(scene.renders, "render"),
        view=view,
        record=scene.plain,
    )
