"""Scores into tables: one row per method and editor, with standard errors that know that a scene's edits are alike.

Pure functions of the rows; `restage show`, studies, the page, LaTeX and slides print the same rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from restage.records import Score
from restage.scores.definitions import FLAG_METRICS, METRICS, Place, metrics_shown_in
from restage.scores.statistics import Estimate, estimate_scores, paired_difference

__all__ = ["ANCHOR_NOTES", "Gap", "Headline", "MethodRow", "anchor_note", "estimates_of", "further_metrics"]
__all__ += ["gaps_to_best", "headline_of", "markdown_table", "measured_columns", "method_table"]

ANCHOR_NOTES = {
    "nothing": "anchor: nothing done",
    "per_view": "anchor: views edited one by one, no scene",
    "exact": "anchor: exact truth in place of the editor",
}
"""Methods, and an editor, that other rows are read by and that do not compete."""


def anchor_note(method: str, editor: str) -> str:
    """What kind of anchor a row is; empty for a competitor."""
    return ANCHOR_NOTES.get(method) or ANCHOR_NOTES.get(editor, "")


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One row of the table of methods: a method with an editor, over all scenes, edits and seeds."""

    method: str
    editor: str
    num_results: int
    num_scenes: int
    flag: str
    """`no-op` or `wrong way`, with how many of how many results if not all; empty if none."""
    estimates: Mapping[str, Estimate]  # an estimate for every metric there is

    @property
    def anchor(self) -> str:
        """What kind of anchor it is; empty for a competitor."""
        return anchor_note(self.method, self.editor)

    @property
    def is_anchor(self) -> bool:
        """Whether it is a row to read the others by, not a competitor."""
        return bool(self.anchor)


class Gap(NamedTuple):
    """How much less of a metric a method has than the best one, over the cases that both have."""

    method: str
    editor: str
    metric: str
    mean: float
    low: float  # lower end of the 95 % interval, clustered by scene
    high: float
    num_pairs: int


class Headline(NamedTuple):
    """The numbers at the head of the page: method `restage` with a model as editor, on its best edit."""

    scene: str
    edit: str
    editor: str
    progress: float
    spill: float
    mask_iou: float
    overall: Estimate  # progress over all edits
    num_edits: int


def estimates_of(scores: Iterable[Score]) -> dict[str, Estimate]:
    """One estimate for every metric there is; one without rows is NaN, `not measured`."""
    by_metric: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
    return {metric: estimate_scores(by_metric[metric]) for metric in METRICS}


def method_table(scores: Sequence[Score], *, noop_progress: float = 0.05) -> list[MethodRow]:
    """All methods with each editor: competitors by falling progress (unscored last), then the anchors likewise.

    Where the rows have no `no_op` and `wrong_way` of their own, a result whose progress is within plus or minus
    `noop_progress` counts as `no-op`, one below it as `wrong way`.
    """
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.method, score.editor].append(score)
    rows = [
        MethodRow(
            method=method,
            editor=editor,
            num_results=len({(score.scene, score.edit, score.seed) for score in group}),
            num_scenes=len({score.scene for score in group}),
            flag="" if method == "nothing" else _flag(group, noop_progress),
            estimates=estimates_of(group),
        )
        for (method, editor), group in groups.items()
    ]

    def rank(row: MethodRow) -> tuple[bool, float, str, str]:
        progress = row.estimates["progress"].mean
        return row.is_anchor, math.inf if math.isnan(progress) else -progress, row.method, row.editor

    return sorted(rows, key=rank)


def _flag(scores: Sequence[Score], noop_progress: float) -> str:
    values: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if not math.isnan(score.value):
            values[score.metric].append(score.value)
    progress = values["progress"]
    no_ops = values["no_op"] or [float(abs(value) <= noop_progress) for value in progress]
    wrong_ways = values["wrong_way"] or [float(value < -noop_progress) for value in progress]
    found = []
    for name, results in (("wrong way", wrong_ways), ("no-op", no_ops)):
        count = sum(value > 0.5 for value in results)
        if count:
            found.append(name if count == len(results) else f"{name} {count} of {len(results)}")
    return ", ".join(found)


def further_metrics(rows: Sequence[MethodRow]) -> list[str]:
    """Metrics that some row has a number of and the page's first table has no column for."""
    apart = {*metrics_shown_in("page"), *FLAG_METRICS}
    return [name for name in METRICS if name not in apart and any(row.estimates[name].num_scored for row in rows)]


def measured_columns(rows: Sequence[MethodRow], place: Place) -> list[str]:
    """Metrics that a table has columns for and that some row says anything of, a number or why there is none."""
    told = {name for row in rows for name, found in row.estimates.items() if found.num_scored + found.num_missing}
    return [name for name in metrics_shown_in(place) if name in told]


def gaps_to_best(rows: Sequence[MethodRow], scores: Sequence[Score]) -> list[Gap]:
    """Paired differences in progress and spill of each competitor to the first; none where no interval can be had."""
    competitors = [row for row in rows if not row.is_anchor]
    gaps = []
    for row in competitors[1:]:
        for metric in ("progress", "spill"):
            who, best = (row.method, row.editor), (competitors[0].method, competitors[0].editor)
            if not row.estimates[metric].num_scored or not competitors[0].estimates[metric].num_scored:
                continue
            found = paired_difference(scores, metric, first=who, second=best)
            if not math.isnan(found.reach):
                ends = found.mean - found.reach, found.mean + found.reach
                gaps.append(Gap(*who, metric, found.mean, *ends, found.num_scored))
    return gaps


def headline_of(scores: Sequence[Score], *, method: str = "restage") -> Headline | None:
    """The best edit of a method with a model as editor (never `exact`); None when it was not scored."""
    members = [score for score in scores if score.method == method and not anchor_note(score.method, score.editor)]
    by_edit: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in members:
        by_edit[score.scene, score.edit, score.editor].append(score)
    estimates = {key: estimates_of(group) for key, group in by_edit.items()}
    scored = {key: found for key, found in estimates.items() if not math.isnan(found["progress"].mean)}
    if not scored:
        return None
    best = max(scored, key=lambda key: scored[key]["progress"].mean)
    same_editor = [score for score in members if score.editor == best[2]]
    return Headline(
        *best,
        **{name: scored[best][name].mean for name in ("progress", "spill", "mask_iou")},
        overall=estimates_of(same_editor)["progress"],
        num_edits=len({(score.scene, score.edit) for score in same_editor}),
    )


def markdown_table(rows: Sequence[MethodRow]) -> str:
    """The table as GitHub markdown, `nothing` first: mean ± standard error, what is missing in brackets."""
    columns = measured_columns(rows, "show")
    arrows, units = {"higher": " ↑", "lower": " ↓", "neither": ""}, {"dB": " (dB)", "s": " (s)"}
    known = [METRICS[name] for name in columns]
    heads = [f"{m.label.replace('seconds', 'time')}{units.get(m.unit, '')}{arrows[m.better]}" for m in known]
    header = ["method", "editor", *heads, "results", "note"]
    lines = [header, ["---"] * 2 + ["---:"] * (len(columns) + 1) + ["---"]]
    for row in sorted(rows, key=lambda row: row.method != "nothing"):
        cells = [_cell(metric, row.estimates[metric]) for metric in columns]
        lines.append([row.method, row.editor, *cells, f"{row.num_results} in {row.num_scenes} scenes", row.anchor])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _cell(metric: str, estimate: Estimate) -> str:
    missing = f" ({estimate.num_missing} missing)" if estimate.num_missing else ""
    if math.isnan(estimate.mean):
        return f"–{missing}"
    if metric in FLAG_METRICS:
        return f"{round(estimate.mean * estimate.num_scored)} of {estimate.num_scored}{missing}"
    digits = METRICS[metric].digits
    error = "" if math.isnan(estimate.standard_error) else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}{missing}"
