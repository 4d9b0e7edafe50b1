"""What to do next follows from what lies there, and every command that is named exists."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from restage.audit.next_steps import OPENERS, next_steps, steps_of_run
from restage.cli import SUMMARIES
from restage.cli import run as restage
from restage.records import read_json, write_json
from tests.audit.sealed_run import write_sealed_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sealed_run(tmp_path / "runs" / "my run")


def commands(run: Path) -> list[str]:
    return [step.command for step in steps_of_run(run)]


def test_where_there_is_no_run_it_begins_with_the_demo_and_a_fit(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert [step.command.split()[1] for step in next_steps(folder)] == ["demo", "fit", "doctor"]


def test_a_run_that_was_stopped_goes_on_first(run: Path) -> None:
    record = read_json(run / "run.json")
    write_json(
        run / "run.json",
        {**record, "status": "stopped", "command": ["/usr/bin/restage", "demo", "--out", "a b"], "sessions": []},
    )
    assert commands(run)[0] == "restage demo --out 'a b'"


def test_a_fit_is_edited_then_reported(run: Path) -> None:
    (run / "compare/scores.parquet").unlink()
    reported = [command.split()[1] for command in commands(run)]
    assert "report" in reported and "edit" not in reported
    for path in run.glob("edit/*/*/*/*/record.json"):
        path.unlink()
    assert commands(run)[0] == f"restage edits {shlex.quote(str(run))}"
    (run / "world/stage.json").unlink()
    assert commands(run)[0].startswith(f"restage edit {shlex.quote(str(run))} ")


def test_the_newest_run_counts_and_a_broken_one_hides_no_other(run: Path) -> None:
    broken = run.parent / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    os.utime(run / "run.json", (1, 1))
    steps = next_steps(run.parent)
    assert steps and all(str(run) in step.command for step in steps)


def test_every_command_that_is_named_exists(run: Path, tmp_path: Path) -> None:
    for step in [*steps_of_run(run), *next_steps(tmp_path / "none")]:
        program, name, *_ = shlex.split(step.command)
        assert (program == "restage" and name in SUMMARIES) or program in OPENERS.values()


def test_without_arguments_and_in_show_and_doctor_it_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent.parent)
    assert restage([]) == 2
    assert "restage report 'runs/my run'" in capsys.readouterr().out
    restage(["show", "runs/my run"])
    assert "restage report 'runs/my run'" in capsys.readouterr().out
    restage(["doctor"])
    assert "restage report 'runs/my run'" in capsys.readouterr().out


def test_a_command_that_is_misspelled_is_told_its_neighbors(capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["edti"]) == 2
    assert "did you mean edit" in capsys.readouterr().err
