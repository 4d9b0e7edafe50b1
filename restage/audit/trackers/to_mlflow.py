"""Sends a run's facts to MLflow, through its client: a local folder, or a server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

from typing import Any

from restage.audit.trackers.facts import RunFacts
from restage.records import MissingExtra

__all__ = ["send_to_mlflow"]

TAG = "restage.run"
BATCH = 100
"""Settings or numbers that go in one request; MLflow's own limits are 100 and 1,000."""
MAX_LENGTH = 500
"""Characters of a setting, as far as every version of MLflow keeps them."""


def send_to_mlflow(facts: RunFacts, *, project: str, where: str = "") -> str:
    """Send a run to an experiment, once, and return where it is; empty `where`: MLFLOW_TRACKING_URI, or `mlruns`."""
    try:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("mlflow-skinny", "trackers") from None
    client = MlflowClient(tracking_uri=where or None)
    experiment = _experiment(client, project)
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


def _experiment(client: Any, project: str) -> str:
    found = client.get_experiment_by_name(project)
    return found.experiment_id if found else client.create_experiment(project)


def _name(name: str) -> str:
    """A name in the letters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name)
