"""The report stage: reads a finished or half-finished run and writes its page, and what is asked for beside it.

The command line calls `run_report` as the last stage of a run, and `write_report` serves any run folder. All but the
page and its assets, `<run>/report/index.html`, is only read. The supplement holds what was written before, of one or
several runs; the same runs give the same bytes.
"""

from __future__ import annotations

import csv
import importlib.resources
import io
import math
import shlex
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from restage.audit.bundle import add_entry
from restage.records import (
    InputError,
    Progress,
    Score,
    canonical_json,
    content_id,
    file_sha256,
    read_json,
    write_atomically,
)
from restage.report import words
from restage.report.clips import ClipSection, clip_sections
from restage.report.gallery import EditSection, edit_sections, spread
from restage.report.paper import Paper
from restage.report.pictures import AssetFolder, read_picture
from restage.report.poster import write_poster
from restage.report.read import ReportConfig, RunContents, SceneEntry, find_figure, read_contents, without_user
from restage.report.slides import write_slides
from restage.report.summary import summarise, write_latex
from restage.report.teaser import write_teaser
from restage.report.templates import open_template
from restage.report.trace import rows_data, trace_results
from restage.report.turn import SceneStore, TurnableEdit
from restage.report.website import write_website
from restage.report.words import loss_curve
from restage.run import layout
from restage.run.folder import RunFolder
from restage.run.layout import AROUND, PAGE, SAMPLED, SCORES
from restage.run.profile import StageTime, add_up
from restage.run.reading import SplatsFile, StageMark, read_run_record
from restage.scores.rows import read_scores
from restage.scores.tables import further_metrics, gaps_to_best, headline_of, measured_columns, method_table

__all__ = ["ReportConfig", "run_report", "write_page", "write_report", "write_supplement"]

DOWNLOADS = (
    ("latex", "LaTeX", "paper/paper.tex"),
    ("slides", "Slides", "slides.pptx"),
    ("website", "Website", "website/index.html"),
    ("poster", "Poster", "poster.pdf"),
    ("teaser", "Teaser", "teaser.mp4"),
)
"""What the page links to: the form, its name, and where it lies beside the page."""


class FittedScene(NamedTuple):
    """What the page shows of a fitted scene."""

    name: str
    psnr_db: float
    facts: Sequence[tuple[str, Any]]
    picture: str | None
    render: str | None
    view: str
    splats_from: SplatsFile | None  # the file of splats that were taken as the fit; None for a fit
    record: Mapping[str, Any]  # all of its `fit.json`
    turnable: TurnableEdit | None  # the scene itself, of one that was made from words
    sheets: Mapping[str, str]  # further pictures of such a scene by their path, and what they show


def write_page(contents: RunContents, config: ReportConfig, run: RunFolder | None) -> Iterator[EditSection]:
    """Write assets, then the page, then drop what an older page left; yields each edit when its pictures are stored."""
    page_path = contents.path / PAGE
    assets = AssetFolder(page_path.with_name("assets"))
    sections = []
    for section in edit_sections(contents, assets, config):
        sections.append(section)
        yield section
    page = open_template("page.html", ["page.css"]).render(**_page_values(contents, sections, assets, config, run))
    # The page comes after the pictures that it shows, and goes on showing the old ones until it is there.
    with write_atomically(page_path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    assets.drop_unused()


def _page_values(
    contents: RunContents, sections: list[EditSection], assets: AssetFolder, config: ReportConfig, run: RunFolder | None
) -> dict[str, Any]:
    rows = method_table(contents.scores, noop_progress=config.noop_progress)
    progress = [row.estimates["progress"].mean for row in rows]
    pairs = contents.pairs
    headline = headline_of(contents.scores)
    facts = {name: mark.facts for name, mark in contents.stages.items()}
    traces = trace_results(contents)
    clips = clip_sections(contents.path, assets)
    names = {(entry.scene, name): entry.edit for entry in contents.edits for name in entry.names}
    instructions = {(entry.scene, name): entry.request.instruction for entry in contents.edits for name in entry.names}
    return {
        "contents": contents,
        "sentence": describe(contents, sections, clips),
        "holdings": in_words(held) if sections and len(held := holdings(contents)) > 1 else "",
        "is_miniature": contents.is_miniature,
        "headline": headline,
        "headline_instruction": instructions.get((headline.scene, headline.edit), headline.edit) if headline else "",
        "wall_s": wall_seconds(contents, run),
        "hardware": words.hardware_in_words(contents.record.machine),
        "sections": sections,
        "clips": clips,
        "num_edits": sum(edit.has_pictures for edit in contents.edits),
        "rows": rows,
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
        "scenes": [_fitted_scene(contents.path, scene, assets, config.max_px) for scene in contents.scenes],
        "downloads": {name: path for form, name, path in DOWNLOADS if form in config.formats},
        "command": shlex.join(contents.record.command),
        "profile": _profile(contents),
    }


def _profile(contents: RunContents) -> dict[str, StageTime]:
    """What each stage took in all sessions, in the order data flows; empty where the record does not say it."""
    total = add_up(*(session.profile for session in contents.record.sessions))
    return {name: total[name] for name in [*layout.STAGES, *sorted(set(total) - set(layout.STAGES))] if name in total}


def describe(contents: RunContents, sections: Sequence[EditSection], clips: Sequence[ClipSection]) -> str:
    """One sentence of what was edited in a run, or of what is there to be edited."""
    edited_clips = [clip for clip in clips if clip.columns]
    parts = []
    if sections:
        competitors = {method.method for section in sections for method in section.methods} - {"nothing"}
        kind = "miniature scene" if contents.is_miniature else "scene"
        scenes = words.count_of(len({section.entry.scene for section in sections}), kind)
        methods = words.count_of(len(competitors), "method")
        text = f"{words.count_of(len(sections), 'edit')} of {scenes} by text, with {methods}"
        if contents.scores:
            num_views = max(len(result.held_out) for edit in contents.edits for result in edit.results)
            views = words.count_of(num_views, "held\N{NON-BREAKING HYPHEN}out view")
            text += f", scored on {views} each"
            text += " against exact truth" if contents.has_truth else ""
        parts.append(text)
    if edited_clips:
        count = words.count_of(len({clip.clip for clip in edited_clips}), "clip")
        parts.append(f"{words.count_of(len(edited_clips), 'edit')} of {count} by text")
    if not parts:
        held = holdings(contents)
        parts = [f"{in_words(held)}, with no edit yet" if contents.scenes or clips else in_words(held)]
    text = "; ".join(part for part in parts if part) or "A run with nothing in it yet"
    return f"{text[0].upper()}{text[1:]}."


def holdings(contents: RunContents) -> list[str]:
    """What a run holds, each kind of thing with its number, in the order data flows."""
    pairs, fits = contents.pairs, [scene.fit for scene in contents.scenes]
    num_steps = round(contents.train[-1].step) if contents.train else 0
    num_made = sum(bool(fit.generated_from) for fit in fits if fit)
    kinds = (
        (contents.num_prompts or 0, "prompt pair", ""),
        ((pairs.num_accepted or 0) + (pairs.num_rejected or 0) if pairs else 0, "image pair", ""),
        (bool(num_steps), f"edit model after {words.count_of(num_steps, 'training step')}", ""),
        (len(fits) - fits.count(None) - num_made, "fitted scene", ""),
        (num_made, "scene made from words", "scenes made from words"),
        (fits.count(None), "scene without a fit", "scenes without a fit"),
        (len(contents.clips), "clip", ""),
    )
    return [words.count_of(number, noun, plural) for number, noun, plural in kinds if number]


def in_words(items: Sequence[str]) -> str:
    """A list as a sentence has it: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def wall_seconds(contents: RunContents, run: RunFolder | None) -> float:
    """Seconds of work in the run: its closed sessions, and the one that is going on; NaN when nothing says."""
    # A clock that was set back in between must not make a run shorter than its closed sessions.
    running_s = max(0.0, time.time() - run.started_s) if run is not None else 0.0
    closed_s = sum(max(0.0, session.wall_s) for session in contents.record.sessions)
    return closed_s + running_s or math.nan


SHEETS = {
    f"scenes/{{}}/{AROUND}": "All around, and how near it is",
    f"scenes/{{}}/{SAMPLED}": "The views that were painted for it, and what it shows there",
    f"{layout.JUDGED}/{{}}.png": "Views that it was not made from; what the probe reads in their cells; "
    "the exact render of what was read; depth",
}
"""Pictures of a scene that was made from words, by where they lie in the run, and what they show."""


def _fitted_scene(run: Path, scene: SceneEntry, assets: AssetFolder, max_px: int) -> FittedScene:
    shared = [view for view in scene.renders if view in scene.pictures]
    view = shared[len(shared) // 2] if shared else next(iter(spread(list(scene.pictures), 1)), "")

    def stored(paths: Mapping[str, Path], label: str) -> str | None:
        if view not in paths:
            return None
        return assets.add_picture(read_picture(paths[view], max_px=max_px), f"scene-{scene.name}-{label}")

    facts = [(key, value) for key, value in scene.plain.items() if isinstance(value, int | float) and "psnr" not in key]
    facts = [(key, max(value, 0) if key == "seconds" else value) for key, value in facts]
    psnr_db = scene.fit.held_out_psnr_db if scene.fit else None
    is_generated = scene.fit is not None and bool(scene.fit.generated_from)
    found = {run / place.format(scene.name): words for place, words in SHEETS.items()} if is_generated else {}
    return FittedScene(
        name=scene.name,
        psnr_db=math.nan if psnr_db is None else psnr_db,
        facts=facts,
        picture=stored(scene.pictures, "picture"),
        render=stored(scene.renders, "render"),
        view=view,
        splats_from=scene.fit.splats_from if scene.fit else None,
        record=scene.plain,
        turnable=SceneStore(assets, 0).store_scene(run / "scenes" / scene.name, view) if is_generated else None,
        sheets={assets.add_file(path, scene.name): words for path, words in found.items() if path.is_file()},
    )


RECORDS = (layout.RUN_RECORD, *layout.STUDY_FILES, layout.STAGE_MARKS, layout.FITS, layout.EDIT_RECORDS)
TABLES = (layout.SCORES, layout.VIEW_SCORES)
DIAGNOSIS = ("diagnose/diagnosis.*",)
REPORT = ("index.html", "assets/*", "paper/**/*", "slides.pptx", "website/**/*", "poster.*", "teaser.*")
NAMES = {
    "index.html": ("Page", "everything of the run, to look at"),
    "paper/paper.tex": ("Paper", "tables and figures as LaTeX, to be compiled"),
    "paper/tables.tex": ("Tables", "LaTeX, booktabs"),
    "slides.pptx": ("Slides", "PowerPoint, LibreOffice"),
    "website/index.html": ("Website", "a project page; the folder can be served as it is"),
    "poster.pdf": ("Poster", "a figure for a column of an A0 sheet"),
    "teaser.mp4": ("Teaser", "a short film of the edits"),
    "data/scores.csv": ("Scores", "every number with its reason where there is none, as CSV"),
    "data/scores.parquet": ("Scores", "the same as Parquet, as it was sealed"),
    "data/views.parquet": ("Scores of views", "every number by held-out view"),
    "diagnosis/diagnosis.md": ("Diagnosis", "why two runs differ"),
    "records/run.json": ("Record", "command, config, versions, machine; beside it those of stages and results"),
}


def write_supplement(runs: Sequence[Path], target: Path) -> Path:
    """Write the zip of runs, which must have a page each and different names."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"two runs have the same name among {', '.join(names)}; give one of their folders another")
    for run in runs:
        if not (run / layout.PAGE).is_file():
            raise InputError(f"{run} has no page; run: restage report {run} --formats page zip")
    parts = [(name, dict(_contents(run))) for name, run in zip(names, runs, strict=True)]
    with write_atomically(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        add_entry(archive, "index.html", _index(runs, parts).encode())
        for name, contents in parts:
            for path, content in contents.items():
                add_entry(archive, f"{name}/{path}", content if isinstance(content, bytes) else content.read_bytes())
    return target


def _contents(run: Path) -> Iterator[tuple[str, Path | bytes]]:
    """What goes into the zip of a run, by its path there."""
    for pattern in REPORT:
        for path in _matching(run, f"report/{pattern}"):
            yield path.relative_to(run / "report").as_posix(), path
    for pattern in TABLES:
        for path in _matching(run, pattern):
            yield f"data/{path.name}", path
    if _matching(run, layout.SCORES):
        yield "data/scores.csv", _as_csv(read_scores(run / layout.SCORES))
    for pattern in DIAGNOSIS:
        for path in _matching(run, pattern):
            yield f"diagnosis/{path.name}", path
    for pattern in RECORDS:
        for path in _matching(run, pattern):
            is_run = pattern == layout.RUN_RECORD
            content = canonical_json(without_user(read_json(path))).encode() if is_run else path
            yield f"records/{path.relative_to(run).as_posix()}", content


def _matching(run: Path, pattern: str) -> list[Path]:
    """Files of a run, without hidden ones, and without links: these may lead out of it."""
    found = [path for path in sorted(run.glob(pattern)) if path.is_file() and not path.name.startswith(".")]
    return [path for path in found if path.resolve() == run.resolve() / path.relative_to(run)]


def _as_csv(scores: Sequence[Score]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Score)])
    for score in scores:
        writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in astuple(score)])
    return text.getvalue().encode()


def _index(runs: Sequence[Path], parts: Sequence[tuple[str, dict[str, Path | bytes]]]) -> str:

    package = importlib.resources.files("restage.report")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        package.joinpath("supplement.html").read_text(encoding="utf-8")
    )
    shown = []
    for run, (name, contents) in zip(runs, parts, strict=True):
        links = [(f"{name}/{path}", *words) for path, words in NAMES.items() if path in contents]
        shown.append({"name": name, "id": read_run_record(run).id, "links": links, "num_files": len(contents)})
    return template.render(runs=shown)


def run_report(run: RunFolder, config: ReportConfig, paper: Paper | None = None) -> Iterator[Progress]:
    """Write the page of a run as its last stage, one step per edit; one that shows the same files is left alone.

    The page is a view of the run's other files: when these or its config have changed since, it is written anew.
    """
    shown_files = files_id(run.path)
    mark = run.path / "report" / layout.STAGE_MARK
    found = read_json(mark, StageMark) if mark.exists() else StageMark(id="")
    if paper is None and found.id == content_id("report", config) and found.facts.get("files") == shown_files:
        yield Progress(stage="report", done=1, total=1, note="already done")
        return
    contents = read_contents(run.path)
    total = max(len(contents.edits), 1)
    for done, _ in enumerate(write_page(contents, config, run), start=1):
        yield Progress(stage="report", done=min(done, total), total=total)
    for note in _write_formats(contents, config, paper):
        yield Progress(stage="report", done=total, total=total, note=note)
    run.mark_done("report", config, files=shown_files)
    yield Progress(stage="report", done=total, total=total, note=str(run.path / layout.PAGE))


def _write_formats(contents: RunContents, config: ReportConfig, paper: Paper | None) -> Iterator[str]:
    """Write what was asked for beside the page; gives the name of each file."""
    folder = (contents.path / layout.PAGE).parent
    if {"latex", "slides", "website", "poster"} & set(config.formats):
        summary = summarise(contents, config)
        if "latex" in config.formats:
            yield from write_latex(summary, folder / "paper")
        if "slides" in config.formats:
            yield write_slides(summary, folder / "slides.pptx").name
        if "website" in config.formats:
            yield from write_website(summary, folder / "website", config=config, paper=paper)
        if "poster" in config.formats:
            yield from write_poster(summary, folder)
    if "teaser" in config.formats:
        yield from (path.name for path in write_teaser(contents, folder / "teaser.mp4"))
    if "zip" in config.formats:
        yield write_supplement([contents.path], folder / "supplement.zip").name


def write_report(run_folder: Path, config: ReportConfig | None = None, paper: Paper | None = None) -> Path:
    """Write the page of any run folder, however far the run came, in place of an older page; returns its path."""
    contents, config = read_contents(run_folder), config or ReportConfig()
    for _ in write_page(contents, config, None):
        pass
    for _ in _write_formats(contents, config, paper):
        pass
    return run_folder / layout.PAGE


def files_id(run_folder: Path) -> str:
    """Content id of what a run holds besides its record and report: names and sizes of files, and the scores."""
    files = {
        path.relative_to(run_folder).as_posix(): path.stat().st_size
        for path in sorted(run_folder.glob("*/**/*"))
        if path.is_file() and path.relative_to(run_folder).parts[0] not in ("report", "verify")
    }
    scores = file_sha256(run_folder / layout.SCORES) if (run_folder / layout.SCORES).exists() else ""
    return content_id("files", {"files": files, "scores": scores})
