from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("nerfstudio", reason="runs in .venv-nerfstudio: make test-nerfstudio")

import torch

from restage.compare.metrics import progress, psnr_db, spill
from restage.edit.pictures import read_image, read_mask
from restage.nerfstudio.export import export_scene, load_trained_scene
from restage.scenes.io import read_capture

pytestmark = pytest.mark.nerfstudio

METHODS = ("restage", "restage-idu", "restage-fit")


def _edit(method: str, scene, fitted: Path, train, small, *arguments, name: str) -> Path:
    request = ("--pipeline.instruction", scene.case.request.instruction)
    editor = ("--pipeline.editor", "exact", "--pipeline.truth", scene.truth)
    load = ("--load-dir", fitted / "nerfstudio_models", "--data", scene.capture)
    return train(method, *small, *request, *editor, *load, *arguments, name=name)


def _measure(scene, fitted: Path, edited: Path) -> dict[str, float]:
    """Metrics of the held-out views, as `restage compare` defines them."""
    before, after = load_trained_scene(fitted / "config.yml"), load_trained_scene(edited / "config.yml")
    capture = before.capture
    held_out = list(capture.held_out_indices)
    names = [Path(capture.file_names[index]).with_suffix(".png").name for index in held_out]
    truth = torch.stack([read_image(scene.truth / "images" / name) for name in names])
    masks = torch.stack([read_mask(scene.truth / "masks" / name) for name in names])
    cameras = capture.cameras[held_out]
    unedited, result = before.render(cameras), after.render(cameras)
    figures = {
        "fit_psnr_db": psnr_db(unedited, capture.images[held_out]).mean,
        "progress_unedited": progress(unedited, capture.images[held_out], truth, masks).mean,
        "progress": progress(result, capture.images[held_out], truth, masks).mean,
        "spill": spill(result, unedited, masks).mean,
        "psnr_db": psnr_db(result, truth).mean,
    }
    print({name: round(value, 4) for name, value in figures.items()})
    return figures


@pytest.fixture(scope="module")
def restaged(scene, fitted, train, small) -> Path:
    rounds = ("--pipeline.steps-per-round", 100, "--pipeline.noise-levels", 1.0, 0.6, "--max-num-iterations", 200)
    return _edit("restage", scene, fitted, train, small, *rounds, name="restaged")


def test_restage_brings_a_nerfacto_to_the_true_edit_and_leaves_the_rest(scene, fitted, restaged) -> None:
    figures = _measure(scene, fitted, restaged)
    assert figures["fit_psnr_db"] > 20
    assert figures["progress_unedited"] < 0.25
    assert figures["progress"] > 0.5
    assert figures["spill"] < 0.03


def test_iterative_dataset_update_brings_a_nerfacto_towards_the_true_edit(scene, fitted, train, small) -> None:
    turns = ("--pipeline.edit-every", 5, "--max-num-iterations", 200)
    figures = _measure(scene, fitted, _edit("restage-idu", scene, fitted, train, small, *turns, name="idu"))
    assert figures["progress"] > 0.4
    assert figures["spill"] < 0.05


def test_an_edited_nerfacto_can_be_edited_again(scene, restaged, train, small) -> None:
    again = ("--pipeline.steps-per-round", 2, "--max-num-iterations", 3)
    second = _edit("restage", scene, restaged, train, small, *again, name="again")
    first_step, second_step = (
        int(next((run / "nerfstudio_models").glob("*.ckpt")).stem.removeprefix("step-")) for run in (restaged, second)
    )
    assert second_step == first_step + 3


def test_a_trained_nerfacto_comes_back_as_a_capture_that_restage_reads(fitted, tmp_path) -> None:
    scene = load_trained_scene(fitted / "config.yml")
    exported = export_scene(scene, tmp_path)
    capture = read_capture(exported.capture)
    assert exported.splats is None
    assert torch.equal(capture.cameras.camera_to_world, scene.capture.cameras.camera_to_world)
    assert capture.held_out_indices == scene.capture.held_out_indices
    assert psnr_db(capture.images, scene.capture.images).mean > 20


def test_ns_train_lists_the_methods(ns_train) -> None:
    shown = subprocess.run([ns_train, "-h"], capture_output=True, text=True, check=True).stdout
    assert [name for name in METHODS if name not in shown.split()] == []


def test_ns_train_asks_for_an_instruction_in_one_line(ns_train, scene, tmp_path) -> None:
    command = [ns_train, "restage", "--data", str(scene.capture), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the instruction is empty" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--load-dir"),
        (("--load-dir", "nowhere"), "holds no checkpoint"),
    ],
)
def test_an_edit_without_a_trained_scene_is_refused(arguments, message, scene, train, small, capsys) -> None:
    words = ("--pipeline.instruction", "make it blue", "--data", scene.capture)
    with pytest.raises(SystemExit, match="2"):
        train("restage", *small, *words, *arguments, name="refused")
    assert message in capsys.readouterr().err


def test_an_unknown_editor_is_refused(scene, fitted, train, small, capsys) -> None:
    words = ("--pipeline.instruction", "make it blue", "--pipeline.editor", "magic", "--data", scene.capture)
    with pytest.raises(SystemExit, match="2"):
        train("restage", *small, *words, "--load-dir", fitted / "nerfstudio_models", name="magic")
    assert "edit_model" in capsys.readouterr().err


def test_a_splatfacto_method_refuses_a_nerfacto(scene, fitted, train, capsys) -> None:
    words = ("--pipeline.instruction", "make it blue", "--data", scene.capture)
    with pytest.raises(SystemExit, match="2"):
        train("restage-splatfacto", *words, "--load-dir", fitted / "nerfstudio_models", name="mixed")
    assert "SplatfactoModelConfig" in capsys.readouterr().err
