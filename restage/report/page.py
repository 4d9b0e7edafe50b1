"""Writes `<run>/report/index.html` and its assets from the files of a run; a pure reader of everything else.

The command line calls `run_report` as the last stage, and `write_report` for any run folder.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from restage.records import Progress, content_id, file_sha256, read_json, to_plain, write_atomically
from restage.report.charts import interval_mark, loss_curve
from restage.report.config import ReportConfig
from restage.report.gallery import EditSection, edit_sections, spread
from restage.report.latex import write_latex
from restage.report.pictures import AssetFolder, read_picture
from restage.report.read import RunContents, SceneEntry, read_run
from restage.report.slides import write_slides
from restage.report.summary import summarise
from restage.report.supplement import write_supplement
from restage.report.trace import rows_data, trace_results
from restage.report.words import (
    as_json,
    as_text,
    as_words,
    count_of,
    format_number,
    hardware_in_words,
    unbroken_duration,
)
from restage.run.folder import RunFolder
from restage.scores.definitions import METRICS, metrics_shown_in
from restage.scores.tables import further_metrics, gaps_to_best, headline_of, method_table

__all__ = ["ReportConfig", "run_report", "write_report"]

SCORES = "compare/scores.parquet"

DOWNLOADS = (("latex", "LaTeX", "paper/paper.tex"), ("slides", "Slides", "slides.pptx"))
"""Of the page: the form, its name, and where it lies beside the page."""


class FittedScene(NamedTuple):
    """What the page shows of a fitted scene."""

    name: str
    psnr_db: float
    facts: list[tuple[str, Any]]
    picture: str | None
    render: str | None
    view: str
    record: Mapping[str, Any]
    """All of its `fit.json`."""


def run_report(run: RunFolder, config: ReportConfig) -> Iterator[Progress]:
    """Write the page of a run as its last stage, one step per edit; one that shows the same files is left alone.

    The page is a view of the run's other files: when these or its config have changed since, it is written anew.

    Raises:
        InputError: a file of the run cannot be read.
    """
    shown_files = files_id(run.path)
    mark = run.path / "report" / "stage.json"
    found = read_json(mark) if mark.exists() else {}
    if found.get("id") == content_id("report", config) and found["facts"]["files"] == shown_files:
        yield Progress(stage="report", done=1, total=1, note="already done")
        return
    contents = read_run(run.path)
    total = max(len(contents.edits), 1)
    for done, _ in enumerate(_write_page(contents, config, run), start=1):
        yield Progress(stage="report", done=min(done, total), total=total)
    for note in _write_formats(contents, config):
        yield Progress(stage="report", done=total, total=total, note=note)
    index_path = run.path / "report" / "index.html"
    run.mark_done("report", config, files=shown_files)
    yield Progress(stage="report", done=total, total=total, note=str(index_path))


def _write_formats(contents: RunContents, config: ReportConfig) -> Iterator[str]:
    """Write what was asked for beside the page; gives the name of each file."""
    folder = contents.path / "report"
    if {"latex", "slides"} & set(config.formats):
        summary = summarise(contents, config)
        if "latex" in config.formats:
            yield from write_latex(summary, folder / "paper")
        if "slides" in config.formats:
            yield write_slides(summary, folder / "slides.pptx").name
    if "zip" in config.formats:
        yield write_supplement([contents.path], folder / "supplement.zip").name


def write_report(run_folder: Path, config: ReportConfig | None = None) -> Path:
    """Write the page of any run folder, however far the run came, in place of an older page; returns its path.

    Raises:
        InputError: it is not a run folder, or a file in it cannot be read.
    """
    contents, config = read_run(run_folder), config or ReportConfig()
    for _ in _write_page(contents, config, None):
        pass
    for _ in _write_formats(contents, config):
        pass
    return run_folder / "report" / "index.html"


def files_id(run_folder: Path) -> str:
    """Content id of what a run holds besides its record and report: names and sizes of files, and the scores."""
    files = {
        path.relative_to(run_folder).as_posix(): path.stat().st_size
        for path in sorted(run_folder.glob("*/**/*"))
        if path.is_file() and path.relative_to(run_folder).parts[0] not in ("report", "verify")
    }
    scores_path = run_folder / "compare" / "scores.parquet"
    scores = file_sha256(scores_path) if scores_path.exists() else ""
    return content_id("files", {"files": files, "scores": scores})


def _write_page(contents: RunContents, config: ReportConfig, run: RunFolder | None) -> Iterator[EditSection]:
    """Write assets, then the page, then drop what an older page left; yields each edit when its pictures are stored."""
    folder = contents.path / "report"
    assets = AssetFolder(folder / "assets")
    sections = []
    for section in edit_sections(contents, assets, config):
        sections.append(section)
        yield section
    page = _environment().get_template("page.html").render(**_page_values(contents, sections, assets, config, run))
    with write_atomically(folder / "index.html") as temporary:
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
    environment.filters.update(
        duration=unbroken_duration, words=as_words, plain=as_text, pretty=as_json, number=format_number
    )
    environment.globals.update(
        style=Markup(package.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(package.joinpath("page.js").read_text(encoding="utf-8")),
        interval_mark=interval_mark,
        is_number=lambda value: math.isfinite(value),
    )
    return environment


def _page_values(
    contents: RunContents,
    sections: list[EditSection],
    assets: AssetFolder,
    config: ReportConfig,
    run: RunFolder | None,
) -> dict[str, Any]:
    rows = method_table(contents.scores, noop_progress=config.noop_progress)
    progress = [row.estimates["progress"].mean for row in rows]
    pairs = contents.pairs
    headline = headline_of(contents.scores)
    command = contents.record.get("command") or []
    facts = {stage.name: stage.facts for stage in contents.stages}
    configs = {stage.name: stage.config for stage in contents.stages}
    traces = trace_results(contents)
    names = {(entry.scene, name): entry.edit for entry in contents.edits for name in entry.names}
    return {
        "contents": contents,
        "sentence": describe(contents, sections),
        "is_miniature": any(edit.truth for edit in contents.edits),
        "headline": headline,
        "headline_instruction": _instruction_of(contents, headline.scene, headline.edit) if headline else "",
        "wall_s": wall_seconds(contents, run),
        "hardware": hardware_in_words(contents.record.get("machine", {})),
        "sections": sections,
        "num_edits": len([edit for edit in contents.edits if any(result.held_out for result in edit.results)]),
        "rows": rows,
        "metrics": METRICS,
        "columns": metrics_shown_in("page"),
        "further": further_metrics(rows),
        "gaps": gaps_to_best(rows, contents.scores),
        "traces": traces,
        "rows_data": rows_data(contents.scores, traces, names),
        "scores_sha256": file_sha256(scores_path) if (scores_path := contents.path / SCORES).exists() else "",
        "diagnosis": contents.diagnosis,
        "diagnosis_figure": _diagnosis_figure(contents, assets),
        "scale_low": min([0.0, *(max(value, -1.0) for value in progress if math.isfinite(value))]),
        "pairs": pairs,
        "pairs_rule": find_rule(facts.get("pairs"), configs.get("pairs")),
        "pairs_facts": facts.get("pairs", {}),
        "sheet": assets.add_file(pairs.sheet_path, "contact-sheet") if pairs and pairs.sheet_path else None,
        "train": contents.train,
        "train_facts": facts.get("train", {}),
        "curve": loss_curve(contents.train.steps, contents.train.losses) if contents.train else "",
        "scenes": [_fitted_scene(scene, assets, config.max_px) for scene in contents.scenes],
        "downloads": {name: path for form, name, path in DOWNLOADS if form in config.formats},
        "command": shlex.join(str(part) for part in command),
    }


def _diagnosis_figure(contents: RunContents, assets: AssetFolder) -> str | None:
    name = (contents.diagnosis or {}).get("figure")
    path = contents.path / "diagnose" / Path(str(name)).name
    return assets.add_file(path, "diagnosis") if name and path.is_file() else None


def describe(contents: RunContents, sections: list[EditSection]) -> str:
    """One sentence of what was run, from what is there."""
    methods = {(method.method, method.editor) for section in sections for method in section.methods}
    competitors = {method for method, _ in methods if method != "nothing"}
    num_views = {len(result.held_out) for edit in contents.edits for result in edit.results}
    kind = "miniature " if any(edit.truth for edit in contents.edits) else ""
    if not sections:
        return f"A run with {count_of(len(contents.scenes), kind + 'scene')} and no edit yet."
    scenes = count_of(len({section.entry.scene for section in sections}), kind + "scene")
    text = f"{count_of(len(sections), 'edit')} of {scenes} by text, with {count_of(len(competitors), 'method')}"
    if contents.scores:
        views = count_of(max(num_views), "held\N{NON-BREAKING HYPHEN}out view")
        text += f", scored on {views} each"
        text += " against exact truth" if kind else ""
    return text[0].upper() + text[1:] + "."


def wall_seconds(contents: RunContents, run: RunFolder | None) -> float:
    """Seconds of work in the run: its closed sessions, and the one that is going on; NaN when nothing says."""
    sessions = contents.record.get("sessions") or []
    total = sum(float(session.get("wall_s", 0)) for session in sessions)
    if run is not None:
        total += time.time() - run.started_s
    return total if total > 0 else math.nan


def find_rule(*sources: Any) -> str:
    """What a stage says of its rule of acceptance, wherever it says it; empty when it does not."""
    for source in sources:
        if isinstance(source, Mapping):
            for key, value in source.items():
                if "rule" in key.lower():
                    return value if isinstance(value, str) else as_words(json.dumps(to_plain(value)))
    return ""


def _instruction_of(contents: RunContents, scene: str, edit: str) -> str:
    for entry in contents.edits:
        if entry.scene == scene and edit in entry.names:
            return entry.instruction
    return edit


def _fitted_scene(scene: SceneEntry, assets: AssetFolder, max_px: int) -> FittedScene:
    shared = [view for view in scene.renders if view in scene.pictures]
    view = shared[len(shared) // 2] if shared else next(iter(spread(list(scene.pictures), 1)), "")

    def stored(paths: Mapping[str, Path], label: str) -> str | None:
        if view not in paths:
            return None
        return assets.add_picture(read_picture(paths[view], max_px=max_px), f"scene-{scene.name}-{label}")

    facts = [(key, value) for key, value in scene.fit.items() if isinstance(value, int | float) and "psnr" not in key]
    return FittedScene(
        name=scene.name,
        psnr_db=_held_out_psnr(scene.fit),
        facts=facts,
        picture=stored(scene.pictures, "picture"),
        render=stored(scene.renders, "render"),
        view=view,
        record=scene.fit,
    )


def _held_out_psnr(fit: Mapping[str, Any]) -> float:
    """The held-out PSNR by whatever name `fit.json` gives it; NaN when it has none."""
    candidates = [key for key in fit if "psnr" in key and isinstance(fit[key], int | float)]
    candidates.sort(key=lambda key: ("held_out" not in key, key))
    return float(fit[candidates[0]]) if candidates else math.nan
