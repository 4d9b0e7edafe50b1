"""Results know the weights that made them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from restage.edit.editors.weights import model_sha256
from restage.edit.methods import Nothing, ReplaceOnce
from restage.edit.single import EditChoice
from restage.recipes import edit_folder
from restage.records import EditRequest, InputError, read_json
from restage.run.folder import RunFolder
from tests.tiny_branch import write_tiny_branch
from tests.tiny_models import write_tiny_models

REQUEST = EditRequest(instruction="make it blue", source_caption="a red ball", target_caption="a blue ball")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models")) / "text_to_image"


@pytest.fixture
def model(shared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared, tmp_path / "models" / "text_to_image")


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def test_a_result_of_other_weights_is_not_taken_for_the_one_that_is_asked_for(
    tiny_scene: Any, model: Path, tmp_path: Path
) -> None:
    scene = RunFolder.open(tmp_path / "run", Nothing(), seed=0).path / "scenes" / "tiny"
    tiny_scene.write(scene)
    choice = EditChoice(
        method="replace_once", settings=ReplaceOnce(num_steps=1), editor="text_to_image", model=model, device="cpu"
    )

    def edit() -> Path:
        steps = edit_folder(scene, [REQUEST], choice)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value[0]

    made = edit()
    assert read_json(made / "record.json", dict)["inputs"]["model_sha256"] == model_sha256("text_to_image", model)
    assert edit() == made
    change(next((model / "unet").glob("*.safetensors")))
    with pytest.raises(InputError, match="was made by other weights than .* holds now; move it away"):
        edit()


def test_weights_are_known_by_their_content_with_their_branches_and_by_the_names_of_blobs(
    model: Path, tmp_path: Path
) -> None:
    before = model_sha256("text_to_image", model)
    write_tiny_branch(model, tmp_path / "branch")
    named = model_sha256("text_to_image", model, [f"branch=depth={tmp_path / 'branch'},weight=0.5"])
    assert named != before
    shutil.copytree(tmp_path / "branch", model.parent / "control")
    assert model_sha256("text_to_image", model) == named
    change(next((model.parent / "control").glob("*.safetensors")))
    assert model_sha256("text_to_image", model) not in (named, before)
    # The hub's cache names large files by their hash: they are not read again.
    other = tmp_path / "snapshot"
    other.mkdir()
    (other / "model.safetensors").symlink_to(tmp_path / "blobs" / ("7" * 64))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("7" * 64)).write_bytes(b"large")
    first = model_sha256("pipeline", other)
    (tmp_path / "blobs" / ("7" * 64)).write_bytes(b"other")
    assert first and model_sha256("pipeline", other) == first
    assert model_sha256("endpoint", None) == model_sha256("pipeline", Path("nobody/nothing")) == ""
