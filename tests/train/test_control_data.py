"""A control branch on a user's own data: views of fitted scenes, and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.cli import run
from restage.diffusion.backbone import load_backbone
from restage.diffusion.config import BranchSource, TrainingConfig
from restage.records import InputError
from restage.regions.files import write_region
from restage.regions.region import Region
from restage.scenes.io.splat_files import read_splats
from restage.train.config import BranchConfig
from restage.train.control import BranchData
from restage.train.control_data import RunPictures, encode_run
from tests.commands.shell import write_capture_folder
from tests.pairs.tiny import WordlessClip, open_run, run_pairs, tiny_config, tiny_model
from tests.tiny_models import write_tiny_models


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    capture = write_capture_folder(folder / "mine")
    assert run(["fit", str(capture), "--out", str(folder / "run"), "--steps", "10", "--num-splats", "200"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_run(tmp_path_factory.mktemp("pairs") / "run")
    list(run_pairs(opened, tiny_config(), tiny_model(), WordlessClip()))
    return opened.path


def test_views_have_the_depth_of_their_splats_and_the_ids_of_regions(scene: Path) -> None:
    pictures = RunPictures(scene, "depth", caption="a thing")
    found, near = list(pictures), pictures.near
    assert len(found) == pictures.total == 3 and {example.caption for example in found} == {"a thing"}
    shares = torch.stack([(example.conditions["depth"] >= 1).float().mean() for example in found])
    assert 0 < near < 10 and float(shares.mean()) < 0.1
    with pytest.raises(InputError, match="no regions"):
        list(RunPictures(scene, "ids"))
    splats = read_splats(scene / "scenes" / "mine" / "splats.ply")
    write_region(scene, "mine", "top", Region.of(splats, (splats.means[:, 2] > 0).float(), by="test"))
    found = list(RunPictures(scene, "ids"))
    assert all(example.conditions["ids"].sum(0).eq(1).all() for example in found)
    assert any(bool(example.conditions["ids"][2].any()) for example in found)
    # As where pictures are made like a view, a region that is called ground is no thing.
    write_region(scene, "mine", "ground", Region.of(splats, torch.ones(len(splats.means)), by="test"))
    again = list(RunPictures(scene, "ids"))
    assert not any(bool(example.conditions["ids"][3:].any()) for example in again)


def test_a_thing_has_another_slot_each_time(scene: Path, tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    splats = read_splats(scene / "scenes" / "mine" / "splats.ply")
    write_region(scene, "mine", "top", Region.of(splats, (splats.means[:, 2] > 0).float(), by="test"))
    config, training = BranchConfig(drop_control=0.0), TrainingConfig(num_steps=1, batch_size=16)
    *_, data = encode_run(backbone, RunPictures(scene, "ids"), config, training)
    assert isinstance(data, BranchData)
    conditions = data.batch(0, torch.Generator().manual_seed(0)).conditions
    used = conditions[:, 2:].flatten(2).any(dim=2)
    assert bool((used.sum(dim=1) <= 1).all()) and int(used.any(dim=0).sum()) > 1
    assert bool((conditions.sum(dim=1) == 1).all())


def test_pictures_of_a_folder_are_found_by_the_names_of_views(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pose"
    folder.mkdir()
    name = list(RunPictures(scene, "canny"))[1].name
    path = folder / f"{Path(name).name}.png"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(path)
    (example,) = RunPictures(scene, str(folder))
    assert example.name == name and example.conditions["pose"].shape == (3, 8, 8)
    path.rename(folder / "other.png")
    with pytest.raises(InputError, match="no pictures with the condition"):
        list(RunPictures(scene, str(folder)))
    with pytest.raises(InputError, match="or a folder"):
        RunPictures(scene, str(tmp_path / "none"))


def test_both_sides_of_a_pair_have_their_edges_and_captions(pairs: Path) -> None:
    pictures = RunPictures(pairs, "canny")
    found = list(pictures)
    assert len(found) == pictures.total >= 4
    with pytest.raises(InputError, match="omit --caption"):
        RunPictures(pairs, "canny", caption="a thing")
    for before, after in zip(found[::2], found[1::2], strict=True):
        assert after.name == f"{before.name}-edited" and before.caption != after.caption
        assert before.conditions["canny"].unique().tolist() in ([0.0], [0.0, 1.0])


def test_the_command_trains_a_branch_and_goes_on(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_models(tmp_path / "models") / "text_to_image"
    command = ["train-control", str(scene), "--condition", "canny", "--out", str(tmp_path / "branch")]
    command += ["--backbone", str(model), "--width", "16", "--training.batch-size", "2"]
    assert run([*command, "--training.num-steps", "1"]) == 0
    assert run([*command, "--training.num-steps", "2"]) == 0
    lines = (tmp_path / "branch" / "state" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    backbone = load_backbone(model, branches=[BranchSource(folder=tmp_path / "branch")])
    assert backbone.branches[0].conditions == ("canny",)
    assert run([*command, "--training.num-steps", "3", "--caption", "another"]) == 2
    assert "another config" in capsys.readouterr().err
