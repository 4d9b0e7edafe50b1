from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from restage.cli import run
from restage.prompts.config import PromptsConfig, RoundsConfig
from restage.recipes import STAGES, demo, learn_forms
from restage.records import InputError, read_json
from restage.run.folder import open_run, working
from restage.run.models import Models, models_in
from restage.scenes.stage import find_scene
from tests.tiny_demo import run_tiny_demo, run_until, tiny_demo_config
from tests.tiny_models import write_tiny_models

# What differs from run to run: times, memory, what wrote the record, and so seals and hashes of files with times.
VOLATILE = {
    *("seconds", "wall_s", "started_s", "sessions", "cost", "peak_memory_mb", "elapsed_s", "time_s"),
    *("command", "user", "git_commit", "machine", "seal", "files"),
}
# Five moments, spread over the stages: in the middle of a shard, of training, of a capture, of an edit's pictures, and
# after the scores were written but before the stage was marked.
KILLS = (
    ("pairs/shard-00001.tar", 1),
    ("train/state.pt", 2),
    ("truth/*/images/*.png", 3),
    ("replace_once-edit_model/0/held_out/*.png", 1),
    ("compare/scores.parquet", 1),
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_tiny_demo(folder, models)
    return folder


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


def content_of(path: Path) -> Any:
    if path.suffix == ".json":
        return without_volatile(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_volatile(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
        # repr, since NaN is not equal to itself.
        return [repr(row) for row in rows if not row.get("is_cost", False)]
    return path.read_bytes()


def records_of(folder: Path) -> dict[str, Any]:
    """Everything in a run by its path, without times; the page, what it was made from and training state hold times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    skipped = ("report/index.html", "report/stage.json", "train/state.pt", "train/loss.png")
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: content_of(path) for name, path in names.items() if name not in skipped}


def test_demo_leaves_every_stage_done_and_a_page(undisturbed: Path) -> None:
    for stage in STAGES:
        assert (undisturbed / stage / "stage.json").exists(), stage
    assert "<html" in (undisturbed / "report" / "index.html").read_text()
    assert read_json(undisturbed / "run.json")["status"] == "done"
    assert read_json(undisturbed / "edit" / "stage.json")["facts"]["num_failed"] == 0


def test_table_has_every_method_with_every_editor_and_the_anchors(undisturbed: Path) -> None:
    rows = pyarrow.parquet.ParquetFile(undisturbed / "compare" / "scores.parquet").read().to_pylist()
    found = {(row["method"], row["editor"]) for row in rows if row["metric"] == "progress"}
    methods = ("replace_once", "idu", "restage")
    assert found == {("nothing", "none"), *((m, e) for m in methods for e in ("edit_model", "exact"))}


def test_doing_nothing_makes_no_progress_and_spills_nothing(undisturbed: Path) -> None:
    rows = pyarrow.parquet.ParquetFile(undisturbed / "compare" / "scores.parquet").read().to_pylist()
    nothing = {row["metric"]: row["value"] for row in rows if row["method"] == "nothing"}
    assert nothing["spill"] == 0
    assert nothing["progress"] < 0.3


def test_second_run_finds_everything_done_and_writes_nothing_but_its_session(undisturbed: Path, models: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    steps = run_tiny_demo(undisturbed, models)
    assert [step.stage for step in steps] == list(STAGES)
    assert all("done" in step.note for step in steps)
    changed = [path for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns]
    assert changed == [undisturbed / "run.json"]


def test_demo_killed_five_times_ends_with_the_records_of_an_undisturbed_one(
    undisturbed: Path, models: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_demo"])
    for pattern, count in KILLS:
        process = context.Process(target=run_until, args=(tmp_path / "run", models, pattern, count))
        process.start()
        process.join()
        assert process.exitcode == -9, f"was not killed at {pattern}"
    run_tiny_demo(tmp_path / "run", models)
    expected, found = records_of(undisturbed), records_of(tmp_path / "run")
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_demo_on_a_run_with_other_models_is_refused(undisturbed: Path, models: Path, tmp_path: Path) -> None:
    config = tiny_demo_config(models_in(models))
    other = {**config.models_sha256, "clip": "0"}
    steps = demo(undisturbed, type(config)(**{**vars(config), "models_sha256": other}), models_in(models))
    with pytest.raises(InputError, match="another config"):
        next(steps)


def test_missing_models_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path / "run"), "--models", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_edit_model_of_the_wrong_shape_is_bad_input(
    undisturbed: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = str(models / "text_to_image")
    assert run(["edit", str(undisturbed), "make the mushroom red", "--model", wrong]) == 2
    message = capsys.readouterr().err
    assert "channels" in message and message.count("\n") == 1


def test_fitted_scene_can_be_edited_by_hand_and_shows_on_the_page(
    undisturbed: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", str(undisturbed), "paint it <b>", "--method", "replace_once"]
    assert run([*command, "--model", str(models / "edit_model")]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("edited: "))
    record = read_json(folder / "record.json")
    assert record["status"] == "done" and record["request"]["instruction"] == "paint it <b>"
    assert (folder / "orbit.mp4").stat().st_size > 0


def test_scene_of_a_run_is_found_only_if_it_is_the_only_one(undisturbed: Path, tmp_path: Path) -> None:
    scene = find_scene(undisturbed)
    assert find_scene(scene) == scene
    with pytest.raises(InputError, match="one fitted scene"):
        find_scene(tmp_path)


def test_mistyped_command_does_not_undo_that_a_run_is_done(tmp_path: Path) -> None:
    with working(open_run(tmp_path / "run")):
        pass
    with pytest.raises(InputError), working(open_run(tmp_path / "run")):
        raise InputError("no such thing")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


def test_shipped_models_are_within_their_budget() -> None:
    assets = models_in()
    if not assets.edit_model.exists():
        pytest.skip("the models are not in the package yet")
    files = [path for folder in vars(assets).values() for path in Path(folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 48 * 2**20


def test_models_are_known_by_content_and_not_by_place(models: Path, tmp_path: Path) -> None:
    first = Models(**vars(models_in(models))).sha256()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_bytes((models / "clip" / "config.json").read_bytes())
    assert models_in(models).sha256() == first
    moved = Models(**{**vars(models_in(models)), "clip": tmp_path / "clip"})
    assert moved.sha256()["clip"] != first["clip"] and moved.sha256()["edit_model"] == first["edit_model"]


def test_rounds_write_prompts_make_pairs_and_learn(tmp_path):
    models = models_in(write_tiny_models(tmp_path / "models"))
    rounds = RoundsConfig(num_rounds=2, prompts=PromptsConfig(num_prompts=4, use_forms=True))
    *_, last = learn_forms(tmp_path / "run", rounds, tiny_demo_config(models).pairs, models)
    for folder in (tmp_path / "run" / "rounds" / "00", tmp_path / "run" / "rounds" / "01"):
        assert (folder / "prompts" / "forms.jsonl").exists()
        assert pyarrow.parquet.read_table(folder / "pairs" / "manifest.parquet").num_rows == 4
    assert last.done == last.total
