"""What a paper and slides show of a run: the table, a strip of pictures for each edit, and where it all comes from.

`write_latex` makes `tables.tex` (booktabs) and figures to put into a paper, and `paper.tex`, which shows them all;
nothing but what a small TeX Live has is used.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from restage.records import Score, write_atomically
from restage.report.gallery import spread
from restage.report.pictures import compose_grid, load_images
from restage.report.read import EditEntry, ReportConfig, ResultEntry, RunContents
from restage.report.words import count_of, draw_loss, format_duration
from restage.scores.definitions import METRICS, metrics_shown_in
from restage.scores.statistics import Estimate, paired_difference
from restage.scores.tables import Gap, MethodRow, anchor_note, gaps_to_best, method_table

__all__ = ["EditFigure", "Summary", "best_row", "cell_parts", "escape_latex", "latex_table", "method_tabular"]
__all__ += ["standings", "summarise", "write_latex"]

STRIP_VIEWS = 2
STRIP_METHODS = 4
"""Competitors in a strip, best first."""


Standing = Literal["best", "second"]


@dataclass(frozen=True, kw_only=True)
class EditFigure:
    """The strip of one edit: before, what methods made of it, truth."""

    entry: EditEntry
    picture: Image.Image
    columns: tuple[str, ...]
    records: tuple[str, ...]  # content ids of the results that are shown

    @property
    def alt(self) -> str:
        """What is to be seen, in a sentence."""
        names = ", ".join(self.columns[:-1]) + f" and {self.columns[-1]}"
        return f"{self.entry.scene}, {self.entry.request.instruction}: held-out views as {names}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that a paper or slides show."""

    contents: RunContents
    title: str
    is_miniature: bool
    rows: Sequence[MethodRow]
    metrics: tuple[str, ...]  # columns of the table
    standings: Mapping[str, Mapping[tuple[str, str], Standing]]
    """For each column, which methods with their editors are best and second."""
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
    """Choose and prepare what is shown of a run."""
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
        standings={name: standings(rows, contents.scores, name) for name in metrics},
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
    ranked = _ranked(rows, metric)
    return ranked[0] if ranked else None


def _ranked(rows: Sequence[MethodRow], metric: str) -> list[MethodRow]:
    better = METRICS[metric].better
    fit = [row for row in rows if not row.is_anchor and row.flag not in ("no-op", "wrong way")]
    scored = [row for row in fit if row.estimates[metric].num_scored and better != "neither"]
    return sorted(scored, key=lambda row: row.estimates[metric].mean, reverse=better == "higher")


def standings(rows: Sequence[MethodRow], scores: Sequence[Score], metric: str) -> dict[tuple[str, str], Standing]:
    """Which methods with their editors are best and second by a metric; ties share a place.

    Two tie when their paired difference is within its own standard error, or cannot be told apart as it is printed.
    """
    found: dict[tuple[str, str], Standing] = {}
    left = _ranked(rows, metric)
    for place in ("best", "second"):
        tied = [row for row in left if _is_tie(left[0], row, scores, metric)]
        found |= {(row.method, row.editor): place for row in tied}
        left = [row for row in left if row not in tied]
    return found


def _is_tie(first: MethodRow, second: MethodRow, scores: Sequence[Score], metric: str) -> bool:
    digits = METRICS[metric].digits
    if f"{first.estimates[metric].mean:.{digits}f}" == f"{second.estimates[metric].mean:.{digits}f}":
        return True
    who = [(row.method, row.editor) for row in (first, second)]
    gap = paired_difference(scores, metric, first=who[0], second=who[1])
    return abs(gap.mean) <= gap.standard_error  # NaN, with fewer than two scenes, ties nothing


def cell_parts(estimate: Estimate, metric: str) -> tuple[str, str]:
    """A mean and its standard error as text; empty where there is none."""
    if not estimate.num_scored:
        return "", ""
    if metric == "seconds":
        return format_duration(estimate.mean), ""
    digits = METRICS[metric].digits
    error = f"{estimate.standard_error:.{digits}f}" if estimate.standard_error == estimate.standard_error else ""
    return f"{estimate.mean:.{digits}f}", error


SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"\u200b": "{}"},
    **{"±": r"$\pm$", "−": "$-$", "→": r"$\to$", "–": "--", "“": "``", "”": "''", "\n": " "},
}

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Opens a box that is made narrower if it is wider than the text, and left as it is otherwise."""

PAPER = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,margin=22mm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""


def escape_latex(text: str) -> str:
    """Text as LaTeX sets it; a character that LaTeX's usual fonts lack becomes a question mark."""
    text = text.replace("--", "-\u200b-")
    shown = "".join(SPECIAL.get(character, character) for character in text)
    return shown.encode("latin-1", "replace").decode("latin-1")


def write_latex(summary: Summary, folder: Path) -> Iterator[str]:
    """Write `tables.tex`, `figures/` and `paper.tex`; yields the name of each file."""
    tables = method_tabular(summary) + (gaps_tabular(summary) if summary.gaps else "")
    yield _write_bytes(folder / "tables.tex", tables.encode())
    body = [PAPER, r"\section*{" + escape_latex(summary.title) + "}\n", r"\input{tables}" + "\n"]
    for number, figure in enumerate(summary.figures, start=1):
        name = f"edit-{number:02d}.png"
        buffer = io.BytesIO()
        figure.picture.save(buffer, "PNG")
        yield _write_bytes(folder / "figures" / name, buffer.getvalue())
        columns, entry = ", ".join(figure.columns), figure.entry
        caption = f"{entry.request.instruction} ({entry.scene}). From left to right: {columns}."
        body.append(_latex_figure(f"figures/{name}", caption, f"fig:edit-{number}", records=figure.records))
    if len(summary.contents.train) > 1:
        yield _write_bytes(folder / "figures" / "loss.pdf", draw_loss(summary.contents.train, form="pdf"))
        body.append(_latex_figure("figures/loss.pdf", "Training loss of the edit model.", "fig:loss", width=0.6))
    if summary.contents.diagnosis:
        body.append(r"\paragraph{Diagnosis.} " + escape_latex(summary.contents.diagnosis.sentence) + "\n\n")
    facts = [f"{name}: {value}" for name, value in summary.facts.items()]
    body.append(r"\paragraph{Record.} \raggedright " + r"\\ ".join(map(escape_latex, facts)) + "\n")
    yield _write_bytes(folder / "paper.tex", ("".join(body) + "\\end{document}\n").encode())


def method_tabular(summary: Summary) -> str:
    """The table of methods: competitors by progress, then the anchors; best in bold, second underlined."""
    metrics = summary.metrics
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}
    units = {name: " (dB)" if METRICS[name].unit == "dB" else "" for name in metrics}
    heads = [f"{METRICS[name].label}{units[name]}{arrows[METRICS[name].better]}" for name in metrics]
    lines: list[str] = []
    for is_anchor in (False, True):
        rows = [row for row in summary.rows if row.is_anchor == is_anchor]
        if rows and is_anchor and len(rows) < len(summary.rows):
            lines.append(r"\midrule")
        lines += [_row(row, summary) for row in rows]
    caption = f"{summary.scope} Best in bold, second underlined; whose paired difference is within its standard error "
    caption += f"shares the place. Below the line: anchors, to read the others by. Run {summary.run_id}."
    return latex_table(
        "ll" + "r" * len(metrics), ["Method", "Editor", *heads], lines, caption, "tab:methods", is_fitted=True
    )


def gaps_tabular(summary: Summary) -> str:
    """The table of paired differences to the best competitor."""
    best = summary.rows[0]
    heads = ["Method", "Editor", "Metric", "Difference", r"95\,\% interval", "Cases"]
    lines: list[str] = []
    for gap in summary.gaps:
        digits = METRICS[gap.metric].digits
        names = [escape_latex(text) for text in (gap.method, gap.editor, METRICS[gap.metric].label)]
        mean, interval = f"${gap.mean:+.{digits}f}$", f"$[{gap.low:.{digits}f}, {gap.high:.{digits}f}]$"
        lines.append(" & ".join([*names, mean, interval, str(gap.num_pairs)]) + r" \\")
    caption = f"Differences to {best.method} ({best.editor}), case by case; intervals are over scenes."
    return latex_table("lllrlr", heads, lines, caption, "tab:differences")


def latex_table(
    columns: str, heads: Sequence[str], rows: Sequence[str], caption: str, label: str, *, is_fitted: bool = False
) -> str:
    """A floating table with booktabs; heads and rows are LaTeX, the caption is text."""
    start = [r"\begin{table}[ht]", r"\centering\small", *([FITTED] if is_fitted else [])]
    start += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}" + "}" * is_fitted, rf"\caption{{{escape_latex(caption)}}}"]
    return "\n".join([*start, *rows, *end, rf"\label{{{label}}}", r"\end{table}", ""])


MARKS: Mapping[Standing | None, str] = {"best": r"\textbf{%s}", "second": r"\underline{%s}", None: "%s"}


def _row(row: MethodRow, summary: Summary) -> str:
    cells = []
    for name in summary.metrics:
        mean, error = cell_parts(row.estimates[name], name)
        shown = escape_latex(mean) if name == "seconds" else f"${mean}$" if mean else "--"
        standing = summary.standings[name].get((row.method, row.editor)) if mean else None
        # Bold acts on text alone, so that a number that needs no mathematics is set without.
        shown = MARKS[standing] % (shown.replace("$", "") if standing == "best" and "-" not in shown else shown)
        missing = f" ({row.estimates[name].num_scored})" if row.estimates[name].num_missing and mean else ""
        cells.append(shown + (rf" {{\scriptsize$\pm${error}}}" if error else "") + missing)
    flag = rf" {{\scriptsize({escape_latex(row.flag)})}}" if row.flag else ""
    editor = "" if row.method == "nothing" or row.editor == "none" else escape_latex(row.editor)
    return " & ".join([escape_latex(row.method) + flag, editor, *cells]) + r" \\"


def _latex_figure(path: str, caption: str, label: str, *, width: float = 1.0, records: tuple[str, ...] = ()) -> str:
    made_of = rf" {{\scriptsize Results: \texttt{{{escape_latex(', '.join(records))}}}.}}" if records else ""
    picture = rf"\centering\includegraphics[width={width}\linewidth]{{{path}}}"
    words = [rf"\caption{{{escape_latex(caption)}{made_of}}}", rf"\label{{{label}}}"]
    return "\n".join([r"\begin{figure}[ht]", picture, *words, r"\end{figure}", ""])


def _write_bytes(path: Path, content: bytes) -> str:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return path.name
