"""Optional trackers: what a run's records say, sent to MLflow or trackio, of which nothing of a run needs either.

A further tracker is one `send` function, which sends a run once and says where it is, and one line in `SINKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from restage.records import MissingExtra, Score
from restage.run.layout import PAGE, RUN_RECORD, SCORES, STAGE_MARKS
from restage.run.reading import TrainingStep, flat_items, read_metrics, read_run_record
from restage.scores.rows import read_scores
from restage.scores.tables import method_table

__all__ = ["SINKS", "RunFacts", "facts_of", "send_to_mlflow", "send_to_trackio"]

TAG = "restage.run"
BATCH = 100
"""Settings or numbers that go in one request; MLflow's own limits are 100 and 1,000."""
MAX_LENGTH = 500
"""Characters of a setting, as far as every version of MLflow keeps them."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as trackers see it."""

    id: str
    name: str
    started_s: float  # seconds since 1970
    settings: Mapping[str, str]
    """Config, seed, versions and commit, flat, such as `config.train.training.num_steps`."""
    curve: Sequence[TrainingStep]
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
            TrainingStep(
                step=step.step, values={f"train/{name}": v for name, v in step.values.items() if math.isfinite(v)}
            )
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


def send_to_mlflow(facts: RunFacts, *, project: str, where: str = "") -> str:
    """Send a run to an experiment, once, and return where it is; empty `where`: MLFLOW_TRACKING_URI, or `mlruns`."""
    try:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("mlflow-skinny", "trackers") from None
    client = MlflowClient(tracking_uri=where or None)
    found = client.get_experiment_by_name(project)
    experiment = found.experiment_id if found else client.create_experiment(project)
    known = client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{facts.id}'", max_results=1)
    if known:
        return f"{project}/{known[0].info.run_id} (sent before)"
    time_ms = int(facts.started_s * 1000)
    tags = {"mlflow.runName": facts.name, "mlflow.source.name": "restage"}
    run_id = client.create_run(experiment, start_time=time_ms, tags=tags).info.run_id
    params = [Param(_name(name), value[:MAX_LENGTH]) for name, value in facts.settings.items()]
    metrics = [Metric(_name(name), value, time_ms, 0) for name, value in facts.numbers.items()]
    metrics += [
        Metric(_name(name), value, time_ms, point.step) for point in facts.curve for name, value in point.values.items()
    ]
    for start in range(0, len(params), BATCH):
        client.log_batch(run_id, params=params[start : start + BATCH])
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    for path in facts.files:
        client.log_artifact(run_id, str(path), artifact_path=path.parent.name)
    # Last: a run without it was cut short, and is sent again.
    client.log_batch(run_id, tags=[RunTag(TAG, facts.id)])
    client.set_terminated(run_id)
    return f"{project}/{run_id}"


def _name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name)


def send_to_trackio(facts: RunFacts, *, project: str, where: str = "") -> str:
    """Send a run to a project, once, and return where it is; `where` is a server's URL, else a local database."""
    try:
        import trackio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("trackio", "trackers") from None
    name = f"{facts.name} {facts.id}"
    if not where and name in trackio.SQLiteStorage.get_runs(project):
        return f"{project}/{name} (sent before)"
    run = trackio.init(
        project=project,
        name=name,
        config=dict(facts.settings),
        server_url=where or None,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    for point in facts.curve:
        run.log(dict(point.values), step=point.step)
    run.log(dict(facts.numbers), step=facts.curve[-1].step if facts.curve else 0)
    run.finish()
    return f"{project}/{name}"


SINKS: dict[str, Callable[..., str]] = {"mlflow": send_to_mlflow, "trackio": send_to_trackio}
