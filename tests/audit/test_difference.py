"""Two runs side by side: what differs is named, what is the same is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restage.audit.show import compare_runs, describe_difference
from restage.cli import run as restage
from restage.records import read_json, write_json
from tests.audit.sealed_run import write_sealed_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_sealed_run(tmp_path / "a"), write_sealed_run(tmp_path / "b", seed=5, bonus=0.125)


def test_a_run_differs_in_nothing_from_itself(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs[0], runs[0])
    assert not any((found.config, found.versions, found.machine, found.data, found.weights, found.scores))


def test_settings_versions_and_weights_that_differ_are_named(runs: tuple[Path, Path]) -> None:
    record = read_json(runs[1] / "run.json")
    record["versions"]["torch"] = "9.9"
    write_json(runs[1] / "run.json", record)
    (runs[1] / "scenes" / "ball" / "splats.ply").write_bytes(b"others")
    found = compare_runs(*runs)
    assert found.config == (("seed", "0", "5"),)
    assert ("versions.torch" in str(found.versions)) or [one.where for one in found.versions] == ["torch"]
    assert [one.where for one in found.weights] == ["splats of ball"]


def test_scores_are_compared_result_by_result(runs: tuple[Path, Path]) -> None:
    gaps = {gap.method: gap for gap in compare_runs(*runs).scores}
    assert set(gaps) == {"restage", "idu"}, "nothing is the same in both and need not be told"
    assert gaps["restage"].first == 0.75 and gaps["restage"].gap == pytest.approx(0.125)
    assert "restage edit_model progress: 0.75 -> 0.875, +0.125 over 1 results" in "\n".join(
        describe_difference(compare_runs(*runs))
    )


def test_command_prints_lines_or_json(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["diff", *map(str, runs)]) == 0
    assert "config: 1 differ" in capsys.readouterr().out
    assert restage(["diff", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"][0][0] == "seed"


def test_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    assert restage(["diff", str(tmp_path), str(tmp_path)]) == 2
