"""The shell command: help, fits and their export, and bad input, which is one line."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from restage.cli import SUMMARIES, run
from restage.records import read_json
from tests.commands.shell import assert_is_bad_input, restage, write_capture_folder


def test_help_lists_every_command() -> None:
    shown = restage("--help").stdout
    for name in SUMMARIES:
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run([name, "--help"])
    assert caught.value.code == 0
    assert f"Example: restage {name}" in capsys.readouterr().out


def test_unknown_command_is_bad_input() -> None:
    assert_is_bad_input(restage("frobnicate"), "frobnicate", "demo")


def test_fit_leaves_a_run_that_says_how_good_it_is(fitted_run: Path) -> None:
    fit = read_json(fitted_run / "scenes" / "mine" / "fit.json")
    assert fit["held_out_psnr_db"] > 0 and fit["seconds"] > 0 and fit["num_held_out"] == 1
    assert read_json(fitted_run / "run.json")["status"] == "done"
    shown = restage("show", fitted_run).stdout
    assert "dB on held-out views" in shown and "scene mine" in shown


def test_second_fit_finds_the_first(fitted_run: Path) -> None:
    capture = fitted_run.parent / "mine"
    before = (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes()
    result = restage("fit", capture, "--out", fitted_run, "--steps", "10", "--num-splats", "200")
    assert result.returncode == 0 and "fitted before" in result.stdout
    assert (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes() == before


def test_fit_with_another_config_is_refused(fitted_run: Path) -> None:
    result = restage("fit", fitted_run.parent / "mine", "--out", fitted_run, "--steps", "11", "--num-splats", "200")
    assert_is_bad_input(result, "another config", "--out")


def test_fitted_scene_is_exported_as_ply(fitted_run: Path, tmp_path: Path) -> None:
    result = restage("export", fitted_run, tmp_path / "mine.ply", "--frame", "upright")
    assert result.returncode == 0 and str(tmp_path / "mine.ply") in result.stdout
    assert (tmp_path / "mine.ply").read_bytes() == (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes()
    assert_is_bad_input(restage("export", fitted_run, tmp_path / "mine.obj"), ".ply")


NO_SPLATS = b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.ply", NO_SPLATS, "is a PLY without any splat"),
        ("cut.ply", b"", "is an empty file"),
        ("cut.splat", b"", "is an empty file"),
        ("cut.spz", b"", "is an empty file"),
        ("other.spz", b"NGSP....", "SPZ (Niantic)"),
    ],
)
def test_a_file_without_splats_that_can_be_read_is_named_on_every_road(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for arguments in (("fit", path), ("edit", path, "make it blue"), ("view", path), ("export", path, "x.ply")):
        assert_is_bad_input(restage(*arguments), f"{path}", expected)
    assert_is_bad_input(restage("show", path), f"{path} is not a run folder")
    assert_is_bad_input(restage("import", path, "--out", tmp_path / "out"), f"{path} is not a folder")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_scene_whose_splats_are_gone_is_refused(fitted_run: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted_run, tmp_path / "run")
    splats = tmp_path / "run" / "scenes" / "mine" / "splats.ply"
    splats.write_bytes(re.sub(rb"element vertex \d+", b"element vertex 0", splats.read_bytes()))
    for arguments in (("edit", tmp_path / "run", "make it blue"), ("view", tmp_path / "run")):
        assert_is_bad_input(restage(*arguments), f"{splats} is a PLY without any splat")


def test_run_can_be_listed(fitted_run: Path) -> None:
    listed = restage("ls", fitted_run.parent)
    assert listed.returncode == 0 and str(fitted_run) in listed.stdout and "done" in listed.stdout


def test_missing_capture_is_bad_input(tmp_path: Path) -> None:
    assert_is_bad_input(restage("fit", tmp_path / "nothing", "--out", tmp_path / "run"), "nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ['{"frames": []}', "{}", "[]", "{", ""])
def test_transforms_without_frames_are_bad_input(tmp_path: Path, content: str) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    (folder / "transforms.json").write_text(content)
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "transforms.json")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_corrupt_image_is_bad_input(tmp_path: Path, content: bytes) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    (folder / "images" / "2.png").write_bytes(content)
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "2.png")


def test_cut_off_image_is_bad_input(tmp_path: Path) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    path = folder / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "2.png")


@pytest.mark.parametrize("instruction", ["", "   "])
def test_empty_instruction_is_bad_input(fitted_run: Path, instruction: str) -> None:
    assert_is_bad_input(restage("edit", fitted_run, instruction), "instruction is empty")


def test_edit_without_a_scene_is_bad_input(tmp_path: Path) -> None:
    assert_is_bad_input(restage("edit", tmp_path / "nothing", "make it blue"), "fitted scene")


@pytest.mark.parametrize(("flag", "word"), [("--method", "restage"), ("--editor", "exact")])
def test_unknown_method_or_editor_is_bad_input_that_names_the_menu(fitted_run: Path, flag: str, word: str) -> None:
    assert_is_bad_input(restage("edit", fitted_run, "make it blue", flag, "magic"), "magic", word)


def test_edit_with_a_missing_model_is_bad_input(fitted_run: Path, tmp_path: Path) -> None:
    before = sorted(fitted_run.rglob("*"))
    result = restage("edit", fitted_run, "make it blue", "--model", tmp_path / "none")
    assert_is_bad_input(result, "none")
    assert_is_bad_input(restage("edit", fitted_run, "make it blue", "--model", "x" * 5000), "too long")
    assert sorted(fitted_run.rglob("*")) == before


def test_stage_without_its_inputs_is_bad_input(tmp_path: Path) -> None:
    for stage in ("pairs", "train", "compare"):
        assert_is_bad_input(restage(stage, tmp_path / stage), stage)


def test_folder_with_something_else_in_it_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert_is_bad_input(restage("demo", "--out", tmp_path), "not a run folder")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_run_that_was_just_fitted_is_as_it_was_written(fitted_run: Path) -> None:
    result = restage("verify", fitted_run, "--fast")
    assert result.returncode == 0, result.stdout


def test_a_run_that_lost_the_record_of_its_fit_is_missed_by_verify(
    fitted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted_run, tmp_path / "run")
    (tmp_path / "run" / "scenes" / "mine" / "fit.json").unlink()
    with pytest.raises(SystemExit, match="1"):
        run(["verify", str(tmp_path / "run"), "--fast"])
    assert "  scenes/mine/fit.json: splats.ply is there, after which it is written" in capsys.readouterr().out
