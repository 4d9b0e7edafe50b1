"""The report stage: reads a finished or half-finished run and writes its page, and what is asked for beside it.

The command line calls `run_report` as the last stage of a run, and `write_report` serves any run folder. The
supplement holds what was written before, of one or several runs; the same runs give the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import jinja2

from restage.audit.bundle import add_entry
from restage.records import InputError, Progress, Score, content_id, file_sha256, read_json, write_atomically
from restage.report.page import write_page
from restage.report.read import ReportConfig, RunContents, read_contents
from restage.report.slides import write_slides
from restage.report.summary import summarise, write_latex
from restage.run import layout
from restage.run.folder import RunFolder
from restage.run.reading import StageMark, read_run_record
from restage.scores.rows import read_scores

__all__ = ["ReportConfig", "run_report", "write_report", "write_supplement"]

RECORDS = (layout.RUN_RECORD, *layout.STUDY_FILES, layout.STAGE_MARKS, layout.FITS, layout.EDIT_RECORDS)
TABLES = (layout.SCORES, layout.VIEW_SCORES)
DIAGNOSIS = ("diagnose/diagnosis.*",)
REPORT = ("index.html", "assets/*", "paper/**/*", "slides.pptx")
NAMES = {
    "index.html": ("Page", "everything of the run, to look at"),
    "paper/paper.tex": ("Paper", "tables and figures as LaTeX, to be compiled"),
    "paper/tables.tex": ("Tables", "LaTeX, booktabs"),
    "slides.pptx": ("Slides", "PowerPoint, LibreOffice"),
    "data/scores.csv": ("Scores", "every number with its reason where there is none, as CSV"),
    "data/scores.parquet": ("Scores", "the same as Parquet, as it was sealed"),
    "data/views.parquet": ("Scores of views", "every number by held-out view"),
    "diagnosis/diagnosis.md": ("Diagnosis", "why two runs differ"),
    "records/run.json": ("Record", "command, config, versions, machine; beside it those of stages and results"),
}


def write_supplement(runs: Sequence[Path], target: Path) -> Path:
    """Write the zip.

    Raises:
        InputError: a run has no page, or two runs have one name.
    """
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
            yield f"records/{path.relative_to(run).as_posix()}", path


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
    import importlib.resources

    package = importlib.resources.files("restage.report")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        package.joinpath("supplement.html").read_text(encoding="utf-8")
    )
    shown = []
    for run, (name, contents) in zip(runs, parts, strict=True):
        links = [(f"{name}/{path}", *words) for path, words in NAMES.items() if path in contents]
        shown.append({"name": name, "id": read_run_record(run).id, "links": links, "num_files": len(contents)})
    return template.render(runs=shown)


def run_report(run: RunFolder, config: ReportConfig) -> Iterator[Progress]:
    """Write the page of a run as its last stage, one step per edit; one that shows the same files is left alone.

    The page is a view of the run's other files: when these or its config have changed since, it is written anew.

    Raises:
        InputError: a file of the run cannot be read.
    """
    shown_files = files_id(run.path)
    mark = run.path / "report" / layout.STAGE_MARK
    found = read_json(mark, StageMark) if mark.exists() else StageMark(id="")
    if found.id == content_id("report", config) and found.facts.get("files") == shown_files:
        yield Progress(stage="report", done=1, total=1, note="already done")
        return
    contents = read_contents(run.path)
    total = max(len(contents.edits), 1)
    for done, _ in enumerate(write_page(contents, config, run), start=1):
        yield Progress(stage="report", done=min(done, total), total=total)
    for note in _write_formats(contents, config):
        yield Progress(stage="report", done=total, total=total, note=note)
    run.mark_done("report", config, files=shown_files)
    yield Progress(stage="report", done=total, total=total, note=str(run.path / layout.PAGE))


def _write_formats(contents: RunContents, config: ReportConfig) -> Iterator[str]:
    """Write what was asked for beside the page; gives the name of each file."""
    folder = (contents.path / layout.PAGE).parent
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
    contents, config = read_contents(run_folder), config or ReportConfig()
    for _ in write_page(contents, config, None):
        pass
    for _ in _write_formats(contents, config):
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
