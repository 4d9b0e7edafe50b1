"""A scene is never silently of another capture, size or config than the one that is asked for."""

import json
from pathlib import Path

import pytest
import torch

from restage.cli import run
from restage.records import InputError, read_json
from restage.scenes.config import FitConfig
from restage.scenes.io import write_capture
from restage.scenes.stage import fit_folder
from tests.scenes.tiny_captures import ColmapModel, change, save_images, small_capture

TINY = FitConfig(steps=2, num_splats=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_capture(small_capture(), tmp_path / "small")
    return tmp_path / "small"


def fit(folder: Path, out: Path, **options) -> dict:
    list(fit_folder(folder, out, options.pop("config", TINY), **options))
    return read_json(out / "scenes/small/fit.json")


def test_the_same_capture_is_not_fitted_twice(folder, tmp_path):
    first = fit(folder, tmp_path / "run")
    splats = tmp_path / "run/scenes/small/splats.ply"
    written = splats.stat().st_mtime_ns
    assert fit(folder, tmp_path / "run") == first
    assert splats.stat().st_mtime_ns == written


def test_settings_may_depend_on_the_size_of_the_views(folder, tmp_path):
    found = fit(folder, tmp_path / "run", config=lambda side: FitConfig(steps=side // 10, num_splats=40))
    assert found["steps"] == max(found["width"], found["height"]) // 10


def repaint(folder: Path) -> None:
    save_images(1 - small_capture().images[:1], folder / "images", ["view_00.png"])


def move_a_camera(folder: Path) -> None:
    change(folder, lambda meta: meta["frames"][3]["transform_matrix"][0].__setitem__(3, 0.5))


def hold_out_others(folder: Path) -> None:
    held_out = ["images/view_00.png"]
    train = [f"images/view_{index:02d}.png" for index in range(1, 9)]
    change(folder, lambda meta: meta.update(train_filenames=train, val_filenames=held_out, test_filenames=held_out))


def take_a_point_away(folder: Path) -> None:
    path = folder / "sparse_pc.ply"
    path.write_bytes(path.read_bytes().replace(b"element vertex 7", b"element vertex 6"))


def add_a_mask(folder: Path) -> None:
    save_images(torch.ones(1, 3, 16, 20), folder, ["mask.png"])
    change(folder, lambda meta: meta["frames"][0].update(mask_path="mask.png"))


@pytest.mark.parametrize("edit", [repaint, move_a_camera, hold_out_others, take_a_point_away, add_a_mask])
def test_a_capture_that_has_changed_is_fitted_anew_with_again_and_refused_without(folder, tmp_path, edit):
    first = fit(folder, tmp_path / "run")
    edit(folder)
    before = sorted(path.read_bytes() for path in (tmp_path / "run/scenes").rglob("*") if path.is_file())
    with pytest.raises(InputError, match="the capture has changed.*--again"):
        fit(folder, tmp_path / "run")
    assert sorted(path.read_bytes() for path in (tmp_path / "run/scenes").rglob("*") if path.is_file()) == before
    second = fit(folder, tmp_path / "run", again=True)
    fresh = fit(folder, tmp_path / "fresh")
    assert second["capture_sha256"] == fresh["capture_sha256"]
    assert (edit is add_a_mask) or second["capture_sha256"] != first["capture_sha256"]
    assert (tmp_path / "run/scenes/small/splats.ply").read_bytes() == (
        tmp_path / "fresh/scenes/small/splats.ply"
    ).read_bytes()


def test_another_size_and_another_config_need_again(folder, tmp_path):
    assert fit(folder, tmp_path / "run", size=18)["width"] == 18
    with pytest.raises(InputError, match="at another size.*--again"):
        fit(folder, tmp_path / "run", size=20)
    assert fit(folder, tmp_path / "run", size=20, again=True)["width"] == 20
    other = FitConfig(steps=3, num_splats=40)
    with pytest.raises(InputError, match="another config.*--again"):
        fit(folder, tmp_path / "run", size=20, config=other)
    assert fit(folder, tmp_path / "run", size=20, config=other, again=True)["steps"] == 3


def test_a_fit_that_was_not_finished_gives_way_to_what_is_asked_for(folder, tmp_path):
    fit(folder, tmp_path / "run", size=18)
    (tmp_path / "run/scenes/small/fit.json").unlink()
    assert fit(folder, tmp_path / "run", size=16)["width"] == 16


def test_a_fit_that_was_edited_is_not_thrown_away(folder, tmp_path):
    fit(folder, tmp_path / "run")
    (tmp_path / "run/edit/small/blue").mkdir(parents=True)
    with pytest.raises(InputError, match="edits that start from the fit.*--out"):
        fit(folder, tmp_path / "run", again=True)
    assert (tmp_path / "run/scenes/small/fit.json").is_file()


def test_a_fit_of_a_version_without_a_note_of_its_capture_needs_again(folder, tmp_path):
    fit(folder, tmp_path / "run")
    (tmp_path / "run/scenes/small/source.json").unlink()
    with pytest.raises(InputError, match="--again"):
        fit(folder, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*1 of the 9 pictures")
def test_the_command_line_has_the_flags_and_tells_notes(folder, tmp_path, capsys):
    (folder / "images/view_03.png").unlink()
    flags = ["--steps", "2", "--num-splats", "40"]
    with pytest.warns(UserWarning, match="1 of the 9 pictures"):
        assert run(["fit", str(folder), "--out", str(tmp_path / "run"), *flags]) == 0
    assert "note: " in capsys.readouterr().out
    assert run(["fit", str(folder), "--out", str(tmp_path / "run"), *flags, "--size", "18"]) == 2
    assert "--again" in capsys.readouterr().err
    assert run(["fit", str(folder), "--out", str(tmp_path / "run"), *flags, "--size", "18", "--again"]) == 0


def test_a_capture_of_one_view_and_one_without_held_out_views_are_fitted_and_shown(tmp_path, capsys):
    write_capture(small_capture().select([0]), tmp_path / "small")
    flags = ["--steps", "2", "--num-splats", "40"]
    assert run(["fit", str(tmp_path / "small"), "--out", str(tmp_path / "run"), *flags]) == 0
    assert "nothing held out" in capsys.readouterr().out
    assert run(["show", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run/scenes/small/fit.json").read_text())
    assert (record["held_out_psnr_db"], record["held_out_ssim"]) == (None, None)


def test_a_colmap_model_is_known_again_too(tmp_path):
    ColmapModel.of_capture(small_capture()).write_text(tmp_path / "small/sparse/0")
    save_images(small_capture().images, tmp_path / "small/images", small_capture().file_names)
    first = fit(tmp_path / "small", tmp_path / "run")
    assert fit(tmp_path / "small", tmp_path / "run") == first
    path = tmp_path / "small/sparse/0/cameras.txt"
    path.write_text(path.read_text().replace("PINHOLE 20 16 2", "PINHOLE 20 16 3", 1))
    with pytest.raises(InputError, match="--again"):
        fit(tmp_path / "small", tmp_path / "run")


def test_splats_that_were_trained_elsewhere_say_what_an_edit_needs(folder, tmp_path, monkeypatch, capsys):
    fit(folder, tmp_path / "run")
    (folder / "splats.ply").write_bytes((tmp_path / "run/scenes/small/splats.ply").read_bytes())
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(["edit", str(folder), "make it golden", "--editor", "grade"]) == 2
    told = capsys.readouterr().err
    assert "restage edit FILE makes one" in told and "restage fit CAPTURE --splats FILE one" in told
    assert run(["fit", str(folder / "splats.ply")]) == 2
    assert "pictures and their cameras" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
