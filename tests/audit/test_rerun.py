"""A run is made again by its own commands, elsewhere, and what differs is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from restage.audit.rerun import comes_out_alike, commands_of, differing_results, moved
from restage.audit.show import compare_runs
from restage.cli import run as restage
from restage.records import InputError, read_json, write_json
from restage.run.layout import SCORES
from restage.scores.rows import read_scores, write_scores
from tests.audit.sealed_run import write_sealed_run
from tests.commands.shell import restage_process, write_capture_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sealed_run(tmp_path / "run")


def with_sessions(run: Path, *sessions: tuple[str, list[str]]) -> None:
    record = read_json(run / "run.json")
    told = [{"status": status, "command": command} for status, command in sessions]
    write_json(run / "run.json", {**record, "sessions": told})


def test_sessions_that_ended_well_are_given_again_in_order(run: Path) -> None:
    with_sessions(
        run,
        ("stopped", ["restage", "fit", "photos", "--out", "run"]),
        ("done", ["restage", "fit", "photos", "--out", "run"]),
        ("done", ["cli.py", "change", "run", "--undo"]),
        ("done", ["restage", "view", "run"]),
        ("failed", ["restage", "report", "run"]),
    )
    assert commands_of(run) == [["fit", "photos", "--out", "run"], ["change", "run", "--undo"]]


@pytest.mark.parametrize("command", [[], ["pytest", "tests"]], ids=["unknown", "not-ours"])
def test_what_made_a_run_must_be_known(run: Path, command: list[str]) -> None:
    with_sessions(run, ("done", ["restage", "fit", "photos"]), ("done", command))
    with pytest.raises(InputError, match=r"does not say|was made by pytest"):
        commands_of(run)


def test_the_folder_is_replaced_wherever_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run, out = Path("runs/a"), Path("again")
    line = ["edit", "./runs/a", "runs/a/b is text", "--region", "runs/a/regions/bear.npz", f"--model={tmp_path}/runs/a"]
    assert moved(line, run, out) == [
        "edit",
        "again",
        "again/b is text",
        "--region",
        "again/regions/bear.npz",
        "--model=again",
    ]
    assert moved(["demo"], run, out) == ["demo", "--out", "again"]
    assert moved(["fit", "runs/ab"], run, out) == ["fit", "runs/ab", "--out", "again"]
    with pytest.raises(InputError, match="does not name the folder"):
        moved(["edit", "photos", "make it bronze"], run, out)


def test_a_fit_comes_out_the_same_again(tmp_path: Path) -> None:
    capture, out, again = write_capture_folder(tmp_path / "mine"), tmp_path / "run", tmp_path / "again"
    assert restage_process("fit", capture, "--out", out, "--steps", "8", "--num-splats", "100").returncode == 0
    done = restage_process("rerun", out, "--out", again)
    assert done.returncode == 0, done.stderr
    assert "1 of 1: restage fit" in done.stdout and "data: the same" in done.stdout
    ours, theirs = (read_json(place / "scenes/mine/fit.json")["files"] for place in (out, again))
    assert ours == theirs


def test_results_whose_splats_differ_are_named(run: Path, tmp_path: Path) -> None:
    other = write_sealed_run(tmp_path / "other")
    assert differing_results(run, other) == []
    path = other / "edit/ball/blue/idu-edit_model/0/record.json"
    write_json(path, {**read_json(path), "files": {"splats.ply": "0"}})
    assert differing_results(run, other) == ["edit/ball/blue/idu-edit_model/0"]


def test_seconds_do_not_count_as_a_difference(run: Path, tmp_path: Path) -> None:
    other, better = write_sealed_run(tmp_path / "other"), write_sealed_run(tmp_path / "better", bonus=0.1)
    for place, seconds in ((run, 1.0), (other, 2.0)):
        rows = read_scores(place / SCORES)
        write_scores(place / SCORES, [*rows, replace(rows[0], metric="seconds", value=seconds, is_cost=True)])
    found = compare_runs(run, other)
    assert [gap.metric for gap in found.scores] == ["seconds"] and comes_out_alike(found, [])
    assert not comes_out_alike(found, ["edit/ball/blue/idu-edit_model/0"])
    assert not comes_out_alike(compare_runs(run, better), [])


def test_a_folder_that_is_there_is_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["rerun", str(run), "--out", str(tmp_path)]) == 2
    assert "there already" in capsys.readouterr().err
