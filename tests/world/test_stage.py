from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restage.records import EditCase, InputError, read_json
from restage.run.folder import RunFolder
from restage.scenes.io import read_capture
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.grammar import HELD_OUT_COMBINATIONS, Description, sample_description, sample_edit
from restage.world.render import render_view
from restage.world.stage import edit_name, make_scene, run_world, sample_scene

TINY = CaptureConfig(num_views=4, held_out_every=2, size=24, num_points=40)
CONFIG = WorldConfig(num_scenes=2, edit_kinds=("recolour", "time"), capture=TINY)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of the scenes by its path."""
    files = sorted(path for path in (folder / "scenes").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_all(path: Path) -> list[str]:
    run = RunFolder.open(path, CONFIG, seed=7)
    return [progress.note for progress in run_world(run, CONFIG)]


def test_a_scene_on_disk_is_laid_out_as_the_conventions_say(tmp_path: Path) -> None:
    run_all(tmp_path / "run")
    scene = tmp_path / "run" / "scenes" / "scene-001"
    description = Description.from_plain(read_json(scene / "description.json"))
    capture = read_capture(scene / "capture")
    assert len(capture.cameras) == 4 and capture.held_out_indices == (1, 3)
    edits = sorted((scene / "truth").iterdir())
    assert [edit.name.split("-")[0] for edit in edits] == ["recolour", "time"]
    for edit in edits:
        case = read_json(edit / "edit.json", EditCase)
        assert case.scene == "scene-001" and case.has_truth and case.request.instruction
        for name, image in zip(capture.file_names, capture.images, strict=True):
            true = np.asarray(Image.open(edit / "images" / name), np.float32) / 255
            mask = np.asarray(Image.open(edit / "masks" / name))
            assert set(np.unique(mask)) <= {0, 255}
            difference = np.abs(true - image.permute(1, 2, 0).numpy()).max(-1)
            assert difference[mask == 0].max(initial=0) < 4.5 / 255
            assert difference[mask == 255].min(initial=1) > 1.5 / 255
    view = render_view(description, capture.cameras[2]).image
    assert np.abs(view - capture.images[2].numpy()).mean() < 2 / 255


def test_a_stopped_run_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    run_all(tmp_path / "whole")
    run = RunFolder.open(tmp_path / "stopped", CONFIG, seed=7)
    steps = run_world(run, CONFIG)
    assert [next(steps).done, next(steps).done] == [1, 2]
    del steps
    first = next((tmp_path / "stopped").glob("scenes/*/truth/*/edit.json"))
    written_s = first.stat().st_mtime_ns
    half = next((tmp_path / "stopped").glob("scenes/*/truth/*/images"))
    run_all(tmp_path / "stopped")
    assert first.stat().st_mtime_ns == written_s and half.exists()
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_truth_without_its_last_file_is_made_again(tmp_path: Path) -> None:
    description = sample_description(1)
    edits = [sample_edit(description, 1, kind="ground")]
    list(make_scene(tmp_path / "a", description, edits, name="a", seed=0, config=TINY))
    truth = tmp_path / "a" / "truth" / edit_name(edits[0])
    (truth / "edit.json").unlink()
    (truth / "images" / "view_001.png").unlink()
    list(make_scene(tmp_path / "a", description, edits, name="a", seed=0, config=TINY))
    assert (truth / "edit.json").exists() and (truth / "images" / "view_001.png").exists()


def test_a_done_stage_says_so_at_once(tmp_path: Path) -> None:
    run_all(tmp_path / "run")
    assert run_all(tmp_path / "run") == ["already done"]


def test_a_folder_with_another_scene_is_refused(tmp_path: Path) -> None:
    list(make_scene(tmp_path / "a", sample_description(1), [], name="a", seed=0, config=TINY))
    with pytest.raises(InputError, match="another scene"):
        list(make_scene(tmp_path / "a", sample_description(2), [], name="a", seed=0, config=TINY))


def test_an_edit_of_another_scene_is_refused(tmp_path: Path) -> None:
    edit = sample_edit(sample_description(2), 0)
    with pytest.raises(InputError, match="this scene"):
        list(make_scene(tmp_path / "a", sample_description(1), [edit], name="a", seed=0, config=TINY))


def test_scenes_are_sampled_so_that_they_allow_all_wanted_edits() -> None:
    config = WorldConfig(edit_kinds=("add", "remove", "resize"), split="unseen")
    description, edits = sample_scene(config, name="x", seed=3)
    assert [edit.kind for edit in edits] == ["add", "remove", "resize"]
    assert {(o.kind, o.color) for o in description.objects} <= HELD_OUT_COMBINATIONS


def test_edits_that_no_scene_allows_are_refused() -> None:
    with pytest.raises(InputError, match="remove"):
        sample_scene(WorldConfig(edit_kinds=("remove",), num_objects=1), name="x", seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_scenes": 0},
        {"edit_kinds": ("melt",)},
        {"edit_kinds": ("add", "add")},
        {"num_objects": 4},
        {"split": "dev"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        WorldConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"held_out_every": 1}, {"num_views": 3}, {"size": 2}, {"num_points": -1}])
def test_a_capture_that_makes_no_sense_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        CaptureConfig(**settings)
