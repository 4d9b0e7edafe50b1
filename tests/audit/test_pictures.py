"""Numbers against pictures: what was forged together with its seals is still found: pictures give other numbers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from restage.audit.records import RecordsResult, check_pictures, check_records
from restage.compare.config import CompareConfig
from restage.records import read_json
from restage.run.folder import RunFolder
from restage.scores.rows import read_scores, write_scores
from restage.studies.work import run_study
from tests.audit.sealed_run import save_picture
from tests.studies.tiny_study import tiny_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "tiny"
    for _ in run_study(tiny_study(compare=CompareConfig(orbit_frames=0)), folder):
        pass
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return shutil.copytree(study, tmp_path / "tiny")


def finish(steps: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def check(run: Path) -> RecordsResult:
    result: RecordsResult = finish(check_records(run))
    finish(check_pictures(run, result))
    return result


def seal_anew(run: Path) -> None:
    """What a forger would do: mark the stage again, with the hashes of what it holds now."""
    folder = RunFolder(path=run, config=read_json(run / "run.json")["config"], seed=0)
    mark = read_json(run / "compare" / "stage.json")
    also = ["scenes/*/capture/**/*", "scenes/*/truth/**/*"]
    folder.mark_done("compare", mark["config"], also=also, **mark["facts"])


def test_every_number_of_a_study_is_what_its_pictures_give(study: Path) -> None:
    result = check(study)
    assert result.findings == [] and result.unsealed == []
    assert result.num_scores > 50


def test_true_pictures_and_the_study_s_own_file_are_sealed(study: Path) -> None:
    files = read_json(study / "compare" / "stage.json")["files"]
    assert "study.json" in files and any("/truth/" in name and name.endswith(".png") for name in files)


def test_cell_that_was_forged_with_its_seals_is_found_and_named(copy: Path) -> None:
    table = copy / "compare" / "scores.parquet"
    scores = read_scores(table)
    index = next(i for i, s in enumerate(scores) if s.method == "replace_once" and s.metric == "progress")
    scores[index] = dataclasses.replace(scores[index], value=0.95)
    write_scores(table, scores)
    seal_anew(copy)
    (finding,) = check(copy).findings
    who = f"{scores[index].scene} {scores[index].edit} replace_once-exact seed {scores[index].seed}"
    assert finding.reason == "wrong score" and finding.file == "compare/scores.parquet"
    assert finding.detail.startswith(f"progress of {who} is 0.95, the pictures give ")


def test_time_that_was_forged_with_its_seals_is_not_the_one_in_the_record(copy: Path) -> None:
    table = copy / "compare" / "scores.parquet"
    scores = read_scores(table)
    index = next(i for i, s in enumerate(scores) if s.method == "replace_once" and s.metric == "seconds")
    scores[index] = dataclasses.replace(scores[index], value=1000.0)
    write_scores(table, scores)
    seal_anew(copy)
    assert ["its record says" in finding.detail for finding in check(copy).findings] == [True]


@pytest.mark.filterwarnings("ignore:world-000. images of 2 sizes")
def test_view_of_a_capture_that_was_swapped_with_its_seals_is_found(copy: Path) -> None:
    picture = sorted((copy / "scenes" / "world-000" / "capture" / "images").glob("*.png"))[0]
    shutil.copyfile(save_picture(copy.parent / "other.png", 77), picture)
    seal_anew(copy)
    result = check(copy)
    assert [finding.file for finding in result.findings] == ["scenes/world-000/capture"]
    assert "numbers of world-000: its capture is not the one that was fitted" in result.notes
