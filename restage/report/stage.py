"""The report stage: reads a finished or half-finished run and writes its page, and what is asked for beside it.

The command line calls `run_report` as the last stage of a run, and `write_report` serves any run folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from restage.records import Progress, content_id, file_sha256, read_json
from restage.report.config import ReportConfig
from restage.report.latex import write_latex
from restage.report.page import write_page
from restage.report.read import RunContents, read_contents
from restage.report.slides import write_slides
from restage.report.summary import summarise
from restage.report.supplement import write_supplement
from restage.run.folder import RunFolder
from restage.run.layout import PAGE, SCORES, STAGE_MARK
from restage.run.reading import StageMark

__all__ = ["ReportConfig", "run_report", "write_report"]


def run_report(run: RunFolder, config: ReportConfig) -> Iterator[Progress]:
    """Write the page of a run as its last stage, one step per edit; one that shows the same files is left alone.

    The page is a view of the run's other files: when these or its config have changed since, it is written anew.

    Raises:
        InputError: a file of the run cannot be read.
    """
    shown_files = files_id(run.path)
    mark = run.path / "report" / STAGE_MARK
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
    yield Progress(stage="report", done=total, total=total, note=str(run.path / PAGE))


def _write_formats(contents: RunContents, config: ReportConfig) -> Iterator[str]:
    """Write what was asked for beside the page; gives the name of each file."""
    folder = (contents.path / PAGE).parent
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
    return run_folder / PAGE


def files_id(run_folder: Path) -> str:
    """Content id of what a run holds besides its record and report: names and sizes of files, and the scores."""
    files = {
        path.relative_to(run_folder).as_posix(): path.stat().st_size
        for path in sorted(run_folder.glob("*/**/*"))
        if path.is_file() and path.relative_to(run_folder).parts[0] not in ("report", "verify")
    }
    scores = file_sha256(run_folder / SCORES) if (run_folder / SCORES).exists() else ""
    return content_id("files", {"files": files, "scores": scores})
