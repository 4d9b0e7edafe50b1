"""Trackers get what a run's records say, once; tested with the real packages where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restage.audit.trackers import facts_of, send_to_mlflow, send_to_trackio
from restage.cli import run as restage
from restage.records import InputError
from tests.audit.sealed_run import write_sealed_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_sealed_run(tmp_path / "mine")
    (run / "train").mkdir()
    rows = [{"step": step, "loss": 1 / step, "seconds": 0.5} for step in (1, 2, 3)]
    (run / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo')
    return run


def test_facts_are_flat_settings_curves_and_means(run: Path) -> None:
    facts = facts_of(run)
    assert facts.settings["config.world.amount"] == "3" and facts.settings["seed"] == "0"
    assert [(point.step, point.values["train/loss"]) for point in facts.curve] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert facts.numbers["progress/restage-edit_model"] == 0.75 and facts.numbers["progress/nothing"] == 0.0
    assert {"run.json", "scores.parquet"} <= {path.name for path in facts.files}


def test_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run.json"):
        facts_of(tmp_path)
    assert restage(["track", str(tmp_path), "--to", "mlflow"]) == 2


def test_mlflow_has_settings_curves_numbers_and_files_once(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs restage[trackers]")
    pytest.importorskip("sqlalchemy", reason="needs restage[trackers]")
    where = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=where)
    experiment = client.create_experiment("pairs", artifact_location=(tmp_path / "artifacts").as_uri())
    send_to_mlflow(facts_of(run), project="pairs", where=where)
    assert "sent before" in send_to_mlflow(facts_of(run), project="pairs", where=where)
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED" and found.data.params["config.world.amount"] == "3"
    assert found.data.metrics["progress/restage-edit_model"] == 0.75
    assert [point.value for point in client.get_metric_history(found.info.run_id, "train/loss")] == [1.0, 0.5, 1 / 3]
    assert (tmp_path / "artifacts" / found.info.run_id / "artifacts" / "compare" / "scores.parquet").exists()


def test_trackio_has_curves_and_numbers_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs restage[trackers]")
    send_to_trackio(facts_of(run), project="pairs")
    assert "sent before" in send_to_trackio(facts_of(run), project="pairs")
    (name,) = trackio.SQLiteStorage.get_runs("pairs")
    logs = trackio.SQLiteStorage.get_logs("pairs", name)
    assert [row["train/loss"] for row in logs if "train/loss" in row] == [1.0, 0.5, 1 / 3]
    assert [row["progress/restage-edit_model"] for row in logs if "progress/restage-edit_model" in row] == [0.75]
