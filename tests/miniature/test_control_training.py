from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniature import pictures
from miniature.command import MiniatureConfig, train_miniature
from miniature.control import CONDITIONS, Layouts, base_of, render_layouts
from miniature.pictures import Pictures, make_pictures, picture_scene
from restage.diffusion.backbone import load_backbone
from restage.diffusion.conditions import slots_of
from restage.diffusion.config import BranchSource
from restage.records import InputError
from restage.run.models import models_in
from restage.world.render import NEAR, render_view
from tests.tiny_models import write_tiny_models

NUM_PICTURES = 8


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    list(make_pictures(tmp_path / "pictures", NUM_PICTURES))
    return tmp_path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models")) / "text_to_image"


def train(folder: Path, start: Path, *, stop_after: int | None = None) -> None:
    config = MiniatureConfig(folder=folder, num_pictures=NUM_PICTURES, num_steps=3, batch_size=2, start=start)
    steps = (step for step in train_miniature("control", config) if step.stage == "control")
    for _ in itertools.islice(steps, stop_after):
        pass


def test_layouts_are_what_the_pictures_show_and_slots_are_drawn_anew(folder: Path) -> None:
    found = Pictures(folder / "pictures")
    list(render_layouts(folder / "pictures", found))
    layouts = Layouts(folder / "pictures", found)
    scene = picture_scene(5)
    view = render_view(scene.shown, scene.camera())
    exact = torch.from_numpy(NEAR / view.depth).clamp(max=1)
    ids = slots_of(torch.from_numpy(view.object_ids).long())
    orders = set()
    for seed in range(6):
        (conditions,) = layouts.conditions([5], torch.Generator().manual_seed(seed))
        torch.testing.assert_close(conditions[0], exact, rtol=0, atol=0.5 / 255 + 1e-4)
        assert torch.equal(conditions[1:3], ids[:2])
        # The same things, in some order.
        things = sorted(channel.flatten().tolist() for channel in conditions[3:])
        assert things == sorted(channel.flatten().tolist() for channel in ids[2:])
        orders.add(tuple(conditions[3:].flatten(1).any(dim=1).tolist()))
    assert len(orders) > 1


def test_layouts_that_are_there_are_kept_and_other_scenes_are_refused(folder: Path) -> None:
    found = Pictures(folder / "pictures")
    list(render_layouts(folder / "pictures", found))
    path = folder / "pictures" / "shard-00000.layout.npy"
    before = path.stat().st_mtime_ns
    assert list(render_layouts(folder / "pictures", found)) == [] and path.stat().st_mtime_ns == before
    path.unlink()
    found.descriptions[1] = found.descriptions[0]
    with pytest.raises(InputError, match="picture 1 shows another scene"):
        list(render_layouts(folder / "pictures", found))


def test_a_branch_of_the_miniature_is_trained_and_goes_on_after_a_stop(folder: Path, start: Path) -> None:
    train(folder, start, stop_after=1)
    assert not (folder / "miniature" / "control").exists()
    train(folder, start)
    branch = folder / "miniature" / "control"
    backbone = load_backbone(start, branches=[BranchSource(folder=branch)])
    assert backbone.branches[0].conditions == CONDITIONS and backbone.branches[0].near == NEAR
    (cached,) = (folder / "miniature" / "state").glob("latents-*.npy")
    assert np.load(cached).shape[0] == NUM_PICTURES


@pytest.mark.parametrize(
    ("part", "settings", "expected"),
    [
        ("clip", {"arm": "controlnet"}, "--arm is for the part control, not for clip"),
        ("control", {"num_clips": 5}, "--num-clips is for the part motion"),
        ("control", {"compile": True}, "omit --compile"),
        ("control", {"num_steps": 0}, "got 0 steps"),
        ("views", {"batch_size": 0}, "steps of 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_is_made(
    tmp_path: Path, part: str, settings: dict[str, Any], expected: str
) -> None:
    list(make_pictures(tmp_path / "pictures", 4))
    with pytest.raises(InputError, match=expected):
        list(train_miniature(part, MiniatureConfig(folder=tmp_path, **settings)))
    assert not (tmp_path / "miniature").exists() and not list(tmp_path.rglob("*.layout.npy"))


def test_a_branch_is_for_the_model_of_the_folder_or_else_the_shipped_one(tmp_path: Path) -> None:
    assert base_of(tmp_path) == models_in().text_to_image
    (tmp_path / "text_to_image" / "unet").mkdir(parents=True)
    (tmp_path / "text_to_image" / "unet" / "config.json").write_text("{}")
    assert base_of(tmp_path) == tmp_path / "text_to_image"
