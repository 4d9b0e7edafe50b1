"""Scores into tables: a pure function of the rows, with standard errors that know that a scene's edits are alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from restage.records import Score
from restage.scores.definitions import METRICS
from restage.scores.statistics import Estimate, clustered_estimate

__all__ = ["ANCHOR_NOTES", "MethodRow", "markdown_table", "method_table"]

COLUMNS = (
    "progress",
    "spill",
    "mask_iou",
    "depth_error",
    "psnr_db",
    "clip_direction",
    "edit_consistency",
    "seconds",
    "no_op",
    "wrong_way",
)
"""Metrics in the table; those that no row has are left out."""

ANCHOR_NOTES = {
    "nothing": "anchor: nothing done",
    "per_view": "anchor: views edited one by one, no scene",
    "exact": "anchor: exact truth in place of the editor",
}


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One row of the table: a method with an editor, over all scenes, edits and seeds."""

    method: str
    editor: str
    num_results: int
    num_scenes: int
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """By metric."""

    @property
    def anchor(self) -> str:
        """What kind of anchor row it is; empty for a contender."""
        return ANCHOR_NOTES.get(self.method) or ANCHOR_NOTES.get(self.editor, "")


def method_table(scores: Sequence[Score]) -> list[MethodRow]:
    """One row per method and editor; anchors first and last, contenders between them by progress, best first."""
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.method, score.editor].append(score)
    rows = [_row(method, editor, group) for (method, editor), group in groups.items()]
    return sorted(rows, key=_rank)


def _row(method: str, editor: str, scores: Sequence[Score]) -> MethodRow:
    metrics = list(dict.fromkeys(score.metric for score in scores))
    by_metric = {metric: [score for score in scores if score.metric == metric] for metric in metrics}
    return MethodRow(
        method=method,
        editor=editor,
        num_results=len({(score.scene, score.edit, score.seed) for score in scores}),
        num_scenes=len({score.scene for score in scores}),
        estimates={
            metric: clustered_estimate([score.value for score in group], [score.scene for score in group])
            for metric, group in by_metric.items()
        },
    )


def _rank(row: MethodRow) -> tuple[int, float, str, str]:
    place = 0 if row.method == "nothing" else 2 if row.anchor else 1
    estimate = row.estimates.get("progress")
    value = -math.inf if estimate is None or math.isnan(estimate.mean) else estimate.mean
    return place, -value, row.method, row.editor


def markdown_table(rows: Sequence[MethodRow]) -> str:
    """The table as GitHub markdown: mean ± standard error, what is missing in brackets."""
    columns = [metric for metric in COLUMNS if any(metric in row.estimates for row in rows)]
    header = ["method", "editor", *map(_heading, columns), "results", "note"]
    lines = [header, ["---"] * 2 + ["---:"] * (len(columns) + 1) + ["---"]]
    for row in rows:
        cells = [_cell(metric, row.estimates.get(metric)) for metric in columns]
        lines.append([row.method, row.editor, *cells, f"{row.num_results} in {row.num_scenes} scenes", row.anchor])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _heading(metric: str) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[METRICS[metric].better]
    unit = f" ({METRICS[metric].unit})" if METRICS[metric].unit in ("dB", "s") else ""
    return METRICS[metric].label.replace("seconds", "time") + unit + arrow


def _cell(metric: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    missing = f" ({estimate.num_missing} missing)" if estimate.num_missing else ""
    if math.isnan(estimate.mean):
        return f"–{missing}"
    if metric in ("no_op", "wrong_way"):
        return f"{round(estimate.mean * estimate.num_scored)} of {estimate.num_scored}{missing}"
    digits = METRICS[metric].digits
    error = "" if math.isnan(estimate.standard_error) else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}{missing}"
