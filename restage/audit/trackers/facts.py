"""What a run's records hold, in the form that trackers take: flat settings, curves, final numbers, files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from restage.records import Score
from restage.run.layout import PAGE, RUN_RECORD, SCORES, STAGE_MARKS
from restage.run.reading import flat_items, read_metrics, read_run_record
from restage.scores.rows import read_scores
from restage.scores.tables import method_table

__all__ = ["CurvePoint", "RunFacts", "facts_of"]


class CurvePoint(NamedTuple):
    """Numbers of one training step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as trackers see it."""

    id: str
    name: str
    started_s: float
    """Seconds since 1970."""
    settings: Mapping[str, str]
    """Config, seed, versions and commit, flat, such as `config.train.training.num_steps`."""
    curve: Sequence[CurvePoint]
    numbers: Mapping[str, float]
    """Means over results, such as `progress/restage-edit_model`, with `.../standard_error`; never NaN."""
    files: Sequence[Path]
    """To keep beside them: the run's records, its table of scores and its page."""


def facts_of(run: Path) -> RunFacts:
    """Read a run's records."""
    record = read_run_record(run)
    shown = {name: getattr(record, name) for name in ("seed", "versions", "git_commit", "status", "config")}
    files = [run / RUN_RECORD, *sorted(run.glob(STAGE_MARKS)), run / SCORES, run / PAGE]
    return RunFacts(
        id=record.id,
        name=run.resolve().name,
        started_s=record.started_s,
        settings=dict(flat_items({**shown, "command": " ".join(record.command)})),
        curve=[
            CurvePoint(step.step, {f"train/{name}": v for name, v in step.values.items() if math.isfinite(v)})
            for step in read_metrics(run)
        ],
        numbers=dict(_numbers(read_scores(run / SCORES))) if (run / SCORES).exists() else {},
        files=[path for path in files if path.is_file()],
    )


def _numbers(scores: Sequence[Score]) -> Iterator[tuple[str, float]]:
    for row in method_table(scores):
        who = row.method if row.editor in ("", "none") else f"{row.method}-{row.editor}"
        for metric, found in row.estimates.items():
            if found.num_scored:
                yield f"{metric}/{who}", found.mean
            if not math.isnan(found.standard_error):
                yield f"{metric}/{who}/standard_error", found.standard_error
