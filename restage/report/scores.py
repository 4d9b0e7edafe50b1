"""Turns rows of `compare/scores.parquet` into what the page prints: means, standard errors, flags, the headline.

Pure functions of the rows; `restage.report.page` calls them. NaN means not scored, and always travels with a reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from restage.records import InputError, Score
from restage.scores.definitions import METRICS
from restage.scores.statistics import clustered_estimate, paired_difference

__all__ = [
    "SHOWN_METRICS",
    "Estimate",
    "Gap",
    "Headline",
    "MethodRow",
    "estimate",
    "estimates_of",
    "further_metrics",
    "gaps_to_best",
    "headline_of",
    "method_rows",
    "read_scores",
]

SHOWN_METRICS = ("progress", "spill", "mask_iou", "psnr_db", "seconds", "peak_memory_mb")
"""Columns of the table of methods; all others that were measured are in a second one."""


class Estimate(NamedTuple):
    """A mean over the scored results, how sure it is, and what is missing from it."""

    mean: float
    """NaN when nothing was scored; then `reason` says why."""
    standard_error: float
    """Clustered by scene; NaN with fewer than two scenes."""
    count: int
    """Number of scored results in the mean."""
    num_missing: int
    """Number of results that were not scored and hence are not in the mean."""
    reason: str
    """Why results are missing, each reason once; empty when none is."""
    num_scenes: int = 0
    """Scenes among the scored results."""

    @property
    def reach(self) -> float:
        """Half of the 95 % interval: Student's t with (scenes - 1) degrees of freedom; NaN with fewer than two."""
        if self.num_scenes < 2:
            return math.nan
        from scipy import stats

        return float(stats.t.ppf(0.975, self.num_scenes - 1)) * self.standard_error


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One line of the method table: a method with an editor, over all scenes, edits and seeds."""

    method: str
    editor: str
    is_anchor: bool
    """A row to read the others by: nothing done, or the exact truth in place of the editor."""
    flag: str
    """`no-op` or `wrong way`, with how many of how many results if not all; empty if none."""
    estimates: Mapping[str, Estimate]
    """By metric."""


class Headline(NamedTuple):
    """The numbers at the head of the page: method `restage` with a model as editor, on its best edit."""

    scene: str
    edit: str
    editor: str
    progress: float
    spill: float
    mask_iou: float
    overall: Estimate
    """Progress over all edits."""
    num_edits: int


def read_scores(path: Path) -> tuple[Score, ...]:
    """Read `scores.parquet`; columns that a `Score` does not have are ignored, an empty value becomes NaN.

    Raises:
        InputError: the file is not parquet, or a column is missing.
    """
    import pyarrow
    import pyarrow.parquet

    names = [field.name for field in dataclasses.fields(Score)]
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable as parquet ({first_line}); run the compare stage again") from None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks columns {missing}; it should have those of records.Score: {names}")
    rows = table.select(names).to_pylist()
    return tuple(
        Score(**{**row, "value": math.nan if row["value"] is None else row["value"], "reason": row["reason"] or ""})
        for row in rows
    )


def estimate(scores: Iterable[Score]) -> Estimate:
    """Mean with its standard error clustered by scene, since edits of one scene are not independent."""
    scores = tuple(scores)
    found = clustered_estimate([score.value for score in scores], [score.scene for score in scores])
    reasons = dict.fromkeys(score.reason or "no reason given" for score in scores if math.isnan(score.value))
    missing = "; ".join(reasons) or ("" if found.num_scored else "not measured")
    num_scenes = len({score.scene for score in scores if not math.isnan(score.value)})
    return Estimate(found.mean, found.standard_error, found.num_scored, found.num_missing, missing, num_scenes)


def estimates_of(scores: Iterable[Score]) -> dict[str, Estimate]:
    """One estimate for every metric there is; one without rows is NaN, `not measured`."""
    by_metric: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
    return {metric: estimate(by_metric[metric]) for metric in METRICS}


def is_anchor(method: str, editor: str) -> bool:
    """Whether it is a row to read the others by, not a competitor."""
    return method == "nothing" or editor == "exact"


def method_rows(scores: Sequence[Score], *, noop_progress: float) -> tuple[MethodRow, ...]:
    """All methods x editors: competitors by falling progress (unscored last), then the anchor rows likewise.

    Args:
        scores: all rows of the comparison.
        noop_progress: where the rows have no `no_op` and `wrong_way` of their own, a result whose progress is within
            plus or minus this counts as `no-op`, one below it as `wrong way`.
    """
    by_row: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        by_row[score.method, score.editor].append(score)
    rows = []
    for (method, editor), members in by_row.items():
        estimates = estimates_of(members)
        flag = "" if method == "nothing" else _flag(members, noop_progress)
        rows.append(
            MethodRow(method=method, editor=editor, is_anchor=is_anchor(method, editor), flag=flag, estimates=estimates)
        )
    return tuple(sorted(rows, key=_rank))


def further_metrics(rows: Sequence[MethodRow]) -> list[str]:
    """Metrics that some row has a number of and the table of methods has no column for."""
    apart = {*SHOWN_METRICS, "no_op", "wrong_way", "is_capped"}
    return [name for name in METRICS if name not in apart and any(row.estimates[name].count for row in rows)]


class Gap(NamedTuple):
    """How much less of a metric a method has than the best one, over the cases that both have."""

    method: str
    editor: str
    metric: str
    mean: float
    low: float
    """Lower end of the 95 % interval, clustered by scene."""
    high: float
    num_pairs: int


def gaps_to_best(rows: Sequence[MethodRow], scores: Sequence[Score]) -> list[Gap]:
    """Paired differences in progress and spill of each competitor to the first; none where no interval can be had."""
    competitors = [row for row in rows if not row.is_anchor]
    gaps = []
    for row in competitors[1:]:
        for metric in ("progress", "spill"):
            who, best = (row.method, row.editor), (competitors[0].method, competitors[0].editor)
            if not row.estimates[metric].count or not competitors[0].estimates[metric].count:
                continue
            found = paired_difference(scores, metric, first=who, second=best)
            if not math.isnan(found.low):
                gaps.append(Gap(*who, metric, found.mean, found.low, found.high, found.num_pairs))
    return gaps


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


def _rank(row: MethodRow) -> tuple[bool, bool, float, str, str]:
    progress = row.estimates["progress"].mean
    unscored = math.isnan(progress)
    return row.is_anchor, unscored, 0.0 if unscored else -progress, row.method, row.editor


def headline_of(scores: Sequence[Score], *, method: str = "restage") -> Headline | None:
    """The best edit of a method with a model as editor (never `exact`); None when it was not scored."""
    members = [score for score in scores if score.method == method and not is_anchor(score.method, score.editor)]
    by_edit: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in members:
        by_edit[score.scene, score.edit, score.editor].append(score)
    progress = {key: estimates_of(group)["progress"].mean for key, group in by_edit.items()}
    scored = {key: value for key, value in progress.items() if not math.isnan(value)}
    if not scored:
        return None
    best = max(scored, key=lambda key: scored[key])
    estimates = estimates_of(by_edit[best])
    same_editor = [score for score in members if score.editor == best[2]]
    return Headline(
        scene=best[0],
        edit=best[1],
        editor=best[2],
        progress=estimates["progress"].mean,
        spill=estimates["spill"].mean,
        mask_iou=estimates["mask_iou"].mean,
        overall=estimates_of(same_editor)["progress"],
        num_edits=len({(score.scene, score.edit) for score in same_editor}),
    )
