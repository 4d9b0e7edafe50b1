"""A table for a rebuttal: what each method scored in one run and in another, with paired differences and intervals."""

from __future__ import annotations

import math
from pathlib import Path

from restage.audit.show import ScoreGap, score_gaps
from restage.records import InputError, write_atomically
from restage.report.summary import escape_latex, latex_table
from restage.scores.definitions import METRICS, metrics_shown_in

__all__ = ["rebuttal_tabular", "write_rebuttal"]


def write_rebuttal(first: Path, second: Path, target: Path) -> Path:
    """Write the table of two runs or studies, from before to after, as LaTeX."""
    text = rebuttal_tabular(first, second)
    with write_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def rebuttal_tabular(first: Path, second: Path) -> str:
    """The table as LaTeX with booktabs; a difference whose interval leaves 0 out is bold if it is for the better.

    Raises:
        InputError: the runs have no scored result in common.
    """
    metrics = metrics_shown_in("paper")
    gaps = [gap for gap in score_gaps(first, second) if gap.metric in metrics]
    if not gaps:
        raise InputError(f"{first} and {second} have no scored result in common: scenes, edits, methods and seeds")
    gaps.sort(key=lambda gap: (gap.method, gap.editor, metrics.index(gap.metric)))
    lines: list[str] = []
    for before, gap in zip([None, *gaps], gaps, strict=False):
        is_same = before is not None and (before.method, before.editor) == (gap.method, gap.editor)
        lines += [r"\midrule"] if before is not None and not is_same else []
        lines.append(_line(gap, is_named=not is_same))
    names = [run.resolve().name for run in (first, second)]
    caption = (
        f"From {names[0]} to {names[1]}, over the results of both. Intervals: 95 %, of paired differences, "
        "clustered by scene. Bold: better, and the interval leaves 0 out."
    )
    heads = ["Method", "Editor", "Metric", r"Before $\to$ after", "Difference", r"95\,\% interval", "Results"]
    return latex_table("lllrrlr", heads, lines, caption, "tab:rebuttal", is_fitted=True)


def _line(gap: ScoreGap, *, is_named: bool) -> str:
    metric = METRICS[gap.metric]
    digits = metric.digits
    difference, interval = f"${gap.gap:+.{digits}f}$", "--"
    if not math.isnan(gap.reach):
        low, high = gap.gap - gap.reach, gap.gap + gap.reach
        interval = f"$[{low:+.{digits}f}, {high:+.{digits}f}]$"
        if (low > 0 and metric.better == "higher") or (high < 0 and metric.better == "lower"):
            difference = rf"$\mathbf{{{gap.gap:+.{digits}f}}}$"
    arrow = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}[metric.better]
    editor = "" if gap.editor == "none" else gap.editor
    who = [escape_latex(gap.method), escape_latex(editor)] if is_named else ["", ""]
    change = rf"${gap.first:.{digits}f} \to {gap.second:.{digits}f}$"
    cells = [*who, escape_latex(metric.label) + arrow, change, difference, interval, str(gap.num_results)]
    return " & ".join(cells) + r" \\"
