"""The folder of a run: with what it goes on, what it refuses, and what its record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from restage.records import (
    InputError,
    read_json,
)
from restage.run.folder import RunFolder
from tests.test_records import ToyConfig


def test_run_goes_on_with_the_same_config_and_refuses_another(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    again = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    assert again.id == run.id
    with pytest.raises(InputError, match="another config"):
        RunFolder.open(tmp_path / "run", ToyConfig(steps=9), seed=0)
    with pytest.raises(InputError, match="another config"):
        RunFolder.open(tmp_path / "run", ToyConfig(), seed=1)


def test_run_goes_on_where_a_start_was_killed_while_it_wrote_its_record(tmp_path: Path) -> None:
    (tmp_path / ".run.4711-00ff00ff.tmp.json").write_text('{"id": "ru')
    run = RunFolder.open(tmp_path, {}, seed=0)
    assert read_json(tmp_path / "run.json")["id"] == run.id


def test_run_refuses_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path, ToyConfig(), seed=0)
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path / "thesis.txt", ToyConfig(), seed=0)


def test_run_record_says_where_it_comes_from_and_how_it_ended(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=5)
    record = read_json(run.path / "run.json")
    assert record["status"] == "running"
    assert {"config", "seed", "command", "git_commit", "versions", "machine"} <= set(record)
    assert record["config"]["path"] == "a/b" and record["versions"]["torch"].startswith("2.13")
    run.close("stopped")
    run.close("done")
    record = read_json(run.path / "run.json")
    assert record["status"] == "done"
    assert [session["status"] for session in record["sessions"]] == ["stopped", "done"]


def test_finished_stage_is_known_by_its_config(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    assert not run.is_done("pairs", ToyConfig())
    run.mark_done("pairs", ToyConfig(), num_pairs=4)
    assert run.is_done("pairs", ToyConfig())
    assert read_json(run.path / "pairs" / "stage.json")["facts"] == {"num_pairs": 4}
    with pytest.raises(InputError, match="another config"):
        run.is_done("pairs", ToyConfig(rate=0.2))
