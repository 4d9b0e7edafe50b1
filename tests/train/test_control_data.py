"""A control branch on a user's own data: views of fitted scenes, and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.cli import run
from restage.diffusion.backbone import load_backbone
from restage.diffusion.config import BranchSource
from restage.records import InputError
from restage.regions.files import write_region
from restage.regions.region import Region
from restage.scenes.io.splat_files import read_splats
from restage.train.control_data import examples_of
from tests.commands.test_cli import write_capture_folder
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
    found, near = examples_of(scene, "depth", caption="a thing")
    assert len(found) == 3 and {example.caption for example in found} == {"a thing"}
    shares = torch.stack([(example.conditions["depth"] >= 1).float().mean() for example in found])
    assert 0 < near < 10 and float(shares.mean()) < 0.1
    with pytest.raises(InputError, match="no regions"):
        examples_of(scene, "ids")
    splats = read_splats(scene / "scenes" / "mine" / "splats.ply")
    write_region(scene, "mine", "top", Region.of(splats, (splats.means[:, 2] > 0).float(), by="test"))
    found, _ = examples_of(scene, "ids")
    assert all(example.conditions["ids"].sum(0).eq(1).all() for example in found)
    assert any(bool(example.conditions["ids"][2].any()) for example in found)


def test_pictures_of_a_folder_are_found_by_the_names_of_views(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pose"
    folder.mkdir()
    name = examples_of(scene, "canny")[0][1].name
    path = folder / f"{Path(name).name}.png"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(path)
    ((example,), _) = examples_of(scene, str(folder))
    assert example.name == name and example.conditions["pose"].shape == (3, 8, 8)
    path.rename(folder / "other.png")
    with pytest.raises(InputError, match="no pictures with the condition"):
        examples_of(scene, str(folder))
    with pytest.raises(InputError, match="or a folder"):
        examples_of(scene, str(tmp_path / "none"))


def test_both_sides_of_a_pair_have_their_edges_and_captions(pairs: Path) -> None:
    found, _ = examples_of(pairs, "canny")
    assert len(found) >= 4
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
