"""What the terminal says of a run: its table, and where one number of it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restage.cli import run as restage
from restage.records import read_json
from tests.audit.sealed_run import write_sealed_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sealed_run(tmp_path / "run")


def test_show_has_the_table_of_methods(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("| restage | edit_model | 0.750"))


def test_row_leads_to_its_result_inputs_and_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["show", str(run), "--row", "1"]) == 0
    out = capsys.readouterr().out
    assert "progress of ball blue idu-edit_model seed 0 is 0.5" in out
    record = read_json(run / "edit/ball/blue/idu-edit_model/0/record.json")
    assert record["inputs"]["splats_sha256"] in out and "rm -rf edit/ball/blue/idu-edit_model/0" in out


def test_row_that_is_not_there_is_bad_input(run: Path) -> None:
    assert restage(["show", str(run), "--row", "3"]) == 2


def test_many_edits_are_counted_by_method(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run / "edit/ball/blue/idu-edit_model/0/record.json"
    for seed in range(1, 30):
        target = record.parent.with_name(str(seed)) / "record.json"
        target.parent.mkdir()
        target.write_text(record.read_text())
    assert restage(["show", str(run)]) == 0
    assert "  30 edits by idu-edit_model: done" in capsys.readouterr().out


def test_json_has_every_record(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["show", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"]["id"] == read_json(run / "run.json")["id"]
    assert found["edits"]["edit/ball/blue/idu-edit_model/0"]["method"] == "idu"
    assert {(row["method"], row["value"]) for row in found["scores"]} >= {("idu", 0.5), ("restage", 0.75)}
    assert restage(["ls", str(run.parent), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["path"] == str(run) and listed["status"] == found["run"]["status"]
    (run / "run.json").write_text("{")
    restage(["ls", str(run.parent), "--json"])
    assert "problem" in json.loads(capsys.readouterr().out)[0]
    assert restage(["show", str(run), "--json", "--row", "1"]) == 2
