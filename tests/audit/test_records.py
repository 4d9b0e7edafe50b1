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
from restage.records import EditCase, EditRequest, InputError, Score, read_json, seal, write_json, write_record
from restage.run.folder import open_run, working
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


def link_splats_to_themselves(run: Path) -> None:
    (run / "scenes" / "ball" / "splats.ply").unlink()
    (run / "scenes" / "ball" / "splats.ply").symlink_to("splats.ply")


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
        (link_splats_to_themselves, {("missing", "scenes/ball/splats.ply")}),
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


@pytest.fixture
def whole_run(run: Path) -> Path:
    """The run with what training keeps to go on from, and with the records of pairs, which have checks of their own."""
    opened = open_run(run)
    (opened.folder("train") / "cache").mkdir()
    for name in ("train/cache/latents-0.safetensors", "train/state.pt", "train/model.safetensors"):
        (run / name).write_bytes(b"weights")
    opened.folder("pairs")
    for name in ("plan", "rule"):
        write_json(run / "pairs" / f"{name}.json", seal({"id": name}))
    opened.mark_done("train", {"steps": 1})
    opened.mark_done("pairs", {"num_pairs": 1}, num_pairs=1)
    return run


def files_of(run: Path, *, but: str = "/") -> list[Path]:
    return [path for path in sorted(run.rglob("*")) if path.is_file() and but not in path.as_posix()]


def names_found(run: Path) -> set[str]:
    return {finding.file for finding in check(run).findings}


def test_every_deleted_file_of_a_finished_run_is_named(whole_run: Path) -> None:
    assert check(whole_run).findings == [] and check(whole_run).notes == []
    for path in files_of(whole_run):
        name, content = path.relative_to(whole_run).as_posix(), path.read_bytes()
        path.unlink()
        is_state = name.startswith("train/cache/") or name == "train/state.pt"  # to make room is no damage
        assert (name in names_found(whole_run)) != is_state, name
        path.write_bytes(content)
    assert check(whole_run).findings == []


def test_every_changed_file_of_a_finished_run_is_named(whole_run: Path) -> None:
    for path in files_of(whole_run):
        name, content = path.relative_to(whole_run).as_posix(), path.read_bytes()
        if name in ("pairs/plan.json", "pairs/rule.json"):
            continue  # `restage.pairs.verify` looks into these
        path.write_bytes(content[:-2] + b"?" + content[-1:])
        assert name in names_found(whole_run), name
        path.write_bytes(content)


def test_every_record_whose_seal_is_damaged_is_named(whole_run: Path) -> None:
    for path in files_of(whole_run):
        content = path.read_bytes()
        if path.name not in ("run.json", "stage.json", "fit.json", "record.json"):
            continue
        for damage in ((b'"seal"', b'"sea1"'), (b'"seal": "', b'"seal": "0'), (b'"seal": "', b'"seal": 5, "was": "')):
            path.write_bytes(content.replace(*damage))
            found = {(finding.reason, finding.file) for finding in check(whole_run).findings}
            assert found == {("edited record", path.relative_to(whole_run).as_posix())}, damage
            path.write_bytes(content)


def test_every_added_file_is_named(whole_run: Path) -> None:
    folders = [whole_run, *(path for path in sorted(whole_run.rglob("*/")) if path.name != "pairs")]
    for folder in folders:
        for name in ("extra.png", "extra.json"):
            (folder / name).write_text("{}")
            assert names_found(whole_run) == {(folder / name).relative_to(whole_run).as_posix()}
            (folder / name).unlink()


def test_what_is_not_finished_or_was_asked_for_since_is_not_added(whole_run: Path) -> None:
    scene = whole_run / "scenes" / "ball"
    request = EditRequest(instruction="paint it", source_caption="", target_caption="")
    write_json(
        scene / "truth" / "paint-it" / "edit.json",
        EditCase(scene="ball", kind="free", request=request, has_truth=False),
    )
    begun = whole_run / "edit" / "ball" / "paint-it" / "restage-exact" / "0"
    save_picture(begun / "held_out" / "view_0.png", 3)
    save_picture(whole_run / "scenes" / "mine" / "capture" / "images" / "view_0.png", 3)
    write_record(whole_run / "scenes" / "mine" / "fit.json", {"num_splats": 1, "seconds": 0.5})
    for name in (".hidden", "report/index.html", "pairs/shard-0.tar", "verify/black.png", "diagnose/diagnosis.md"):
        (whole_run / name).parent.mkdir(exist_ok=True)
        (whole_run / name).write_text("")
    assert check(whole_run).findings == []


@pytest.mark.parametrize(
    ("unit", "record", "state"),
    [
        ("scenes/mine", "fit.json", "fit_state.pt"),
        ("edit/mine/paint-it/restage-exact/0", "record.json", "stopped.json"),
    ],
)
def test_a_record_of_work_that_no_stage_marks_is_missed_unless_the_work_was_stopped(
    run: Path, unit: str, record: str, state: str
) -> None:
    folder = run / unit
    save_picture(folder / "held_out" / "view_0.png", 3)
    assert check(run).findings == []
    (folder / "splats.ply").write_bytes(b"splats")
    assert [(finding.reason, finding.file) for finding in check(run).findings] == [("missing", f"{unit}/{record}")]
    (folder / state).touch()
    assert check(run).findings == []


def test_splats_that_were_brought_need_no_record_of_a_fit(run: Path) -> None:
    (run / "scenes" / "brought").mkdir()
    (run / "scenes" / "brought" / "splats.ply").write_bytes(b"splats")
    assert check(run).findings == []


def test_a_record_that_both_a_stage_and_its_unit_call_for_is_named_once(run: Path) -> None:
    save_picture(run / "scenes" / "ball" / "held_out" / "view_0.png", 3)
    (run / "scenes" / "ball" / "fit.json").unlink()
    found = [finding.detail for finding in check(run).findings if finding.file == "scenes/ball/fit.json"]
    assert found == ["named by scenes/stage.json"]


def test_a_stage_whose_mark_was_taken_away_to_make_it_anew_is_not_missed_when_it_has_begun(whole_run: Path) -> None:
    (whole_run / "train" / "stage.json").unlink()
    assert "train/stage.json" in names_found(whole_run)
    assert not open_run(whole_run).is_done("train", {"steps": 1})
    assert "train/stage.json" not in names_found(whole_run)


def test_a_run_whose_own_record_is_gone_is_still_checked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        restage(["verify", str(run), "--fast"])
    assert stopped.value.code == 1 and "run.json: " in capsys.readouterr().out
