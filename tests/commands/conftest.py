"""Runs that tests of commands read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from restage.records import Score
from restage.scores.rows import write_scores
from tests.commands.shell import restage, write_capture_folder


@pytest.fixture(scope="session")
def fitted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    capture = write_capture_folder(folder / "mine")
    result = restage("fit", capture, "--out", folder / "run", "--steps", "10", "--num-splats", "200")
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def scored_run(fitted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fit and a table of scores, which `show` shows."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(fitted_run, folder)
    result = {"scene": "mine", "edit": "recolour-1", "kind": "recolour", "editor": "edit_model", "seed": 0}
    scores = [Score(**result, method=method, metric="progress", value=0.5) for method in ("idu", "restage")]
    write_scores(folder / "compare" / "scores.parquet", scores)
    assert "| idu |" in restage("show", folder).stdout
    return folder
