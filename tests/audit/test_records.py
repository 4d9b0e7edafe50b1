"""A run against its own records: whatever is changed in it afterwards is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from restage.audit.records import RecordsResult, check_records
from restage.cli import run as restage
from restage.records import InputError, Score, read_json, write_json
from restage.scores.rows import read_scores, write_scores
from tests.audit.sealed_run import save_picture, write_sealed_run

RESULT = "edit/ball/blue/restage-edit_model/0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sealed_run(tmp_path / "run")


def check(run: Path) -> RecordsResult:
    steps = check_records(run)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def change_cell(run: Path) -> None:
    path = run / "compare" / "scores.parquet"
    rows = [score.__dict__ for score in read_scores(path)]
    rows[0]["value"] = 0.99
    write_scores(path, [Score(**row) for row in rows])


def change_config_of_the_run(run: Path) -> None:
    record = read_json(run / "run.json")
    record["config"]["world"]["amount"] = 4
    write_json(run / "run.json", record)


def change_config_of_a_stage(run: Path) -> None:
    record = read_json(run / "compare" / "stage.json")
    record["config"]["amount"] = 4
    write_json(run / "compare" / "stage.json", record)


def change_record(run: Path) -> None:
    record = read_json(run / RESULT / "record.json")
    write_json(run / RESULT / "record.json", {**record, "seed": 1})


def swap_true_picture(run: Path) -> None:
    save_picture(run / "scenes" / "ball" / "truth" / "blue" / "images" / "view_0.png", 201)


def swap_splats(run: Path) -> None:
    (run / "scenes" / "ball" / "splats.ply").write_bytes(b"others")


def remove_picture(run: Path) -> None:
    (run / RESULT / "held_out" / "view_0.png").unlink()


def remove_result(run: Path) -> None:
    shutil.rmtree(run / RESULT)


def tear_record(run: Path) -> None:
    (run / RESULT / "record.json").write_text("{")


def test_untouched_run_has_no_findings(run: Path) -> None:
    result = check(run)
    assert result.findings == [] and result.unsealed == []
    assert result.num_records == 1 + 4 + 4 and result.num_files >= 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_cell, {("changed", "compare/scores.parquet")}),
        (change_config_of_the_run, {("edited record", "run.json"), ("wrong id", "run.json")}),
        (change_config_of_a_stage, {("edited record", "compare/stage.json"), ("wrong id", "compare/stage.json")}),
        (change_record, {("edited record", f"{RESULT}/record.json")}),
        (
            lambda run: save_picture(run / RESULT / "held_out" / "view_0.png", 99),
            {("changed", f"{RESULT}/held_out/view_0.png")},
        ),
        (swap_true_picture, {("changed", "scenes/ball/truth/blue/images/view_0.png")}),
        (swap_splats, {("changed", "scenes/ball/splats.ply")}),
        (remove_picture, {("missing", f"{RESULT}/held_out/view_0.png")}),
        (remove_result, {("missing", f"{RESULT}/record.json")}),
        (tear_record, {("unreadable", f"{RESULT}/record.json")}),
    ],
)
def test_what_was_changed_afterwards_is_found_and_named(
    run: Path, change: Callable[[Path], object], expected: set[tuple[str, str]]
) -> None:
    change(run)
    assert expected <= {(finding.reason, finding.file) for finding in check(run).findings}


def test_going_on_with_a_run_whose_record_was_edited_does_not_seal_the_edit(run: Path) -> None:
    from restage.run.folder import open_run, working

    change_config_of_the_run(run)
    with working(open_run(run)):
        pass
    assert ("edited record", "run.json") in {(finding.reason, finding.file) for finding in check(run).findings}


def test_run_of_an_earlier_version_is_not_sealed_and_its_configs_are_still_held_to_their_ids(run: Path) -> None:
    for path in run.rglob("*.json"):
        record = read_json(path)
        write_json(path, {name: value for name, value in record.items() if name not in ("seal", "files")})
    assert check(run).findings == [] and len(check(run).unsealed) == 9
    change_config_of_a_stage(run)
    assert [finding.reason for finding in check(run).findings] == ["wrong id", "mismatch"]


def test_verify_says_what_it_found_and_exits_with_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["verify", str(run), "--fast"]) == 0
    assert "nothing found in 9 records" in capsys.readouterr().out
    change_cell(run)
    with pytest.raises(SystemExit) as stopped:
        restage(["verify", str(run), "--fast", "--json"])
    assert stopped.value.code == 1
    found = json.loads(capsys.readouterr().out)["records"][0]["findings"]
    assert [(finding["reason"], finding["file"]) for finding in found] == [("changed", "compare/scores.parquet")]


def test_files_outside_of_a_run_are_not_read_for_a_record_that_names_them(run: Path) -> None:
    record = read_json(run / "compare" / "stage.json")
    record["files"]["../secret"] = "0" * 64
    write_json(run / "compare" / "stage.json", record)
    (run.parent / "secret").write_text("secret")
    assert ("missing", "../secret") in {(finding.reason, finding.file) for finding in check(run).findings}


def test_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run.json"):
        check(tmp_path)
    assert restage(["verify", str(tmp_path)]) == 2


def test_table_is_still_what_readers_expect(run: Path) -> None:
    assert pq.read_table(run / "compare" / "scores.parquet").num_rows == 3


@pytest.mark.parametrize("record", ["compare/stage.json", "scenes/ball/fit.json", "run.json"])
def test_a_record_that_lost_its_seal_is_no_earlier_version(run: Path, record: str) -> None:
    content = read_json(run / record)
    content["sea1"] = content.pop("seal")
    write_json(run / record, content)
    assert [(found.reason, found.file) for found in check(run).findings] == [("edited record", record)]


def test_a_deleted_mark_is_named(run: Path) -> None:
    (run / "compare" / "stage.json").unlink()
    assert any(note.startswith("compare: ") for note in check(run).notes)
