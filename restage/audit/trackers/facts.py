"""What a run's records hold, in the form that trackers take: flat settings, curves, final numbers, files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from restage.records import InputError, read_json, to_plain

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
    """Read a run's records.

    Raises:
        InputError: it is not a run, or a record in it cannot be read.
    """
    if not (run / "run.json").is_file():
        raise InputError(f"{run} holds no run.json; name the folder of a run")
    record = read_json(run / "run.json")
    shown = {name: record.get(name) for name in ("seed", "versions", "git_commit", "status", "config")}
    files = [*sorted(run.glob("*/stage.json")), run / "compare" / "scores.parquet", run / "report" / "index.html"]
    return RunFacts(
        id=str(record["id"]),
        name=run.resolve().name,
        started_s=float(record.get("started_s", 0.0)),
        settings=dict(_flatten("", {**shown, "command": " ".join(map(str, record.get("command", ())))})),
        curve=tuple(_curve(run / "train" / "metrics.jsonl")),
        numbers=dict(_numbers(run / "compare" / "scores.parquet")),
        files=[path for path in (run / "run.json", *files) if path.is_file()],
    )


def _flatten(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(f"{where}.{name}" if where else str(name), item)
    elif value is not None:
        yield where, value if isinstance(value, str) else json.dumps(to_plain(value), ensure_ascii=False)


def _curve(path: Path) -> Iterator[CurvePoint]:
    """Lines of a training's metrics; a last one that a kill cut short is left out."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return
        values = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        step = int(values.pop("step", 0))
        yield CurvePoint(step, {f"train/{name}": value for name, value in values.items() if math.isfinite(value)})


def _numbers(path: Path) -> Iterator[tuple[str, float]]:
    from restage.scores.rows import read_scores
    from restage.scores.statistics import clustered_estimate

    groups: dict[str, list[tuple[float, str]]] = {}
    for score in read_scores(path) if path.exists() else ():
        who = score.method if score.editor in ("", "none") else f"{score.method}-{score.editor}"
        groups.setdefault(f"{score.metric}/{who}", []).append((score.value, score.scene))
    for name, rows in groups.items():
        found = clustered_estimate([value for value, _ in rows], [scene for _, scene in rows])
        if found.num_scored:
            yield name, found.mean
        if not math.isnan(found.standard_error):
            yield f"{name}/standard_error", found.standard_error
