"""What a paper and slides show of a run: the table, a strip of pictures for each edit, and where it all comes from.

`latex.py` and `slides.py` call `summarise`; the page shows more.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from restage.report.gallery import spread
from restage.report.pictures import compose_grid, load_images
from restage.report.read import EditEntry, ReportConfig, ResultEntry, RunContents
from restage.report.words import count_of, format_duration
from restage.scores.definitions import METRICS, metrics_shown_in
from restage.scores.statistics import Estimate
from restage.scores.tables import Gap, MethodRow, anchor_note, gaps_to_best, method_table

__all__ = ["EditFigure", "Summary", "best_row", "cell_parts", "summarise"]

STRIP_VIEWS = 2
STRIP_METHODS = 4
"""Competitors in a strip, best first."""


@dataclass(frozen=True, kw_only=True)
class EditFigure:
    """The strip of one edit: before, what methods made of it, truth."""

    entry: EditEntry
    picture: Image.Image
    columns: tuple[str, ...]
    records: tuple[str, ...]
    """Content ids of the results that are shown."""

    @property
    def alt(self) -> str:
        """What is to be seen, in a sentence."""
        names = ", ".join(self.columns[:-1]) + f" and {self.columns[-1]}"
        return f"{self.entry.scene}, {self.entry.instruction}: held-out views as {names}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that a paper or slides show."""

    contents: RunContents
    title: str
    is_miniature: bool
    rows: Sequence[MethodRow]
    metrics: tuple[str, ...]
    """Columns of the table."""
    gaps: Sequence[Gap]
    figures: Sequence[EditFigure]
    sheet: Path | None
    command: str
    run_id: str

    @property
    def scope(self) -> str:
        """What the numbers are about, in a sentence."""
        edits = {(score.scene, score.edit) for score in self.contents.scores}
        scenes = {scene for scene, _ in edits}
        seeds = {score.seed for score in self.contents.scores}
        where = " of the miniature world (not photographs)" if self.is_miniature else ""
        counts = f"{count_of(len(edits), 'edit')} of {count_of(len(scenes), 'scene')}{where}"
        return f"Means over {counts}, {count_of(len(seeds), 'seed')}; ± one standard error clustered by scene."

    @property
    def facts(self) -> Mapping[str, Any]:
        """Where it comes from, as short lines."""
        return {"run": self.run_id, "commit": self.contents.record.git_commit, "made by": self.command}


def summarise(contents: RunContents, config: ReportConfig) -> Summary:
    """Choose and prepare what is shown of a run.

    Raises:
        InputError: a picture cannot be read.
    """
    rows = method_table(contents.scores, noop_progress=config.noop_progress)
    metrics = tuple(name for name in metrics_shown_in("paper") if any(row.estimates[name].num_scored for row in rows))
    shown = [entry for entry in contents.edits if any(result.held_out for result in entry.results)]
    order = {(row.method, row.editor): place for place, row in enumerate(rows)}
    scenes = count_of(len({entry.scene for entry in shown}), "scene")
    title = f"{count_of(len(shown), 'edit')} of {scenes} by text"
    return Summary(
        contents=contents,
        title=title[0].upper() + title[1:],
        is_miniature=contents.is_miniature,
        rows=rows,
        metrics=metrics,
        gaps=gaps_to_best(rows, contents.scores),
        figures=[_figure(entry, order) for entry in spread(shown, config.max_edits)],
        sheet=contents.pairs.sheet_path if contents.pairs else None,
        command=shlex.join(contents.record.command),
        run_id=contents.record.id,
    )


def _figure(entry: EditEntry, order: Mapping[tuple[str, str], int]) -> EditFigure:
    results = sorted(
        {(result.method, result.editor): result for result in reversed(entry.results) if result.held_out}.values(),
        key=lambda result: order.get((result.method, result.editor), len(order)),
    )
    competitors = [result for result in results if not anchor_note(result.method, result.editor)][:STRIP_METHODS]
    shown = competitors or results[:STRIP_METHODS]
    views = spread(sorted({view for result in shown for view in result.held_out}), STRIP_VIEWS)
    columns: list[tuple[str, Mapping[str, Path]]] = [("before", entry.before)]
    columns += [(_name(result, shown), result.held_out) for result in shown]
    columns += [("truth", entry.truth)] if entry.truth else []
    grid = [[load_images([paths[view]])[0] if view in paths else None for _, paths in columns] for view in views]
    names = tuple(name for name, _ in columns)
    records = tuple(result.record.id for result in shown if result.record.id)
    picture = compose_grid(grid, column_labels=names, cell_px=256, font_px=18)
    return EditFigure(entry=entry, picture=picture, columns=names, records=records)


def _name(result: ResultEntry, shown: Sequence[ResultEntry]) -> str:
    is_alone = sum(other.method == result.method for other in shown) == 1
    return result.method if is_alone else f"{result.method} {result.editor}"


def best_row(rows: Sequence[MethodRow], metric: str) -> MethodRow | None:
    """The competitor with the best mean; None where the metric ranks nothing.

    One that does next to nothing, or goes the wrong way, in all results is the best by nothing.
    """
    better = METRICS[metric].better
    fit = [row for row in rows if not row.is_anchor and row.flag not in ("no-op", "wrong way")]
    scored = [row for row in fit if row.estimates[metric].num_scored]
    if better == "neither" or not scored:
        return None
    return (max if better == "higher" else min)(scored, key=lambda row: row.estimates[metric].mean)


def cell_parts(estimate: Estimate, metric: str) -> tuple[str, str]:
    """A mean and its standard error as text; empty where there is none."""
    if not estimate.num_scored:
        return "", ""
    if metric == "seconds":
        return format_duration(estimate.mean), ""
    digits = METRICS[metric].digits
    error = f"{estimate.standard_error:.{digits}f}" if estimate.standard_error == estimate.standard_error else ""
    return f"{estimate.mean:.{digits}f}", error
