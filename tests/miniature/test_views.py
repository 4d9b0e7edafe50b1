from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniature import views
from miniature.command import MiniatureConfig, train_miniature
from miniature.text_to_image import cache_of
from restage.diffusion.backbone import load_backbone
from restage.diffusion.training import read_metrics
from restage.diffusion.view_attention import load_view_attention
from restage.records import InputError
from tests.tiny_models import write_tiny_models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(views, "SHARD_SIZE", 3)
    write_tiny_models(tmp_path / "miniature")
    return tmp_path


def config(folder: Path, num_steps: int) -> MiniatureConfig:
    return MiniatureConfig(folder=folder, num_rings=6, num_steps=num_steps, batch_size=8)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    unet = load_backbone(folder / "miniature" / "text_to_image").unet
    return dict(load_view_attention(folder / "miniature" / "views", unet).state_dict())


def test_training_that_was_stopped_goes_on_to_the_same_add_on(folder: Path, tmp_path: Path) -> None:
    steps = list(train_miniature("views", config(folder, 4)))
    assert [step.stage for step in steps] == ["rings"] * 2 + ["views"] * 4
    whole = weights(folder)
    (cache,) = (folder / "miniature" / "state").glob("rings-*")
    rings = sorted(cache.glob("*.npy"))
    assert [np.load(path).shape for path in rings] == [(3, 8, 4, 16, 16)] * 2
    metrics = read_metrics(folder / "miniature" / "state" / "views")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4] and all(row["loss"] > 0 for row in metrics)
    # Only the add-on has changed, and it does something now.
    assert any(bool(value.any()) for name, value in whole.items() if "to_out.weight" in name)
    (folder / "miniature" / "state" / "views").rename(folder / "miniature" / "state" / "first")
    list(train_miniature("views", config(folder, 2)))
    assert not all(torch.equal(value, whole[name]) for name, value in weights(folder).items())
    list(train_miniature("views", config(folder, 4)))
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_rings_are_those_of_their_seed_and_keep_what_training_may_not_see(folder: Path) -> None:
    scene, cameras = views.ring_scene(7)
    again = views.ring_scene(7)
    assert again[0] == scene and torch.equal(again[1].camera_to_world, cameras.camera_to_world) and len(cameras) == 8
    assert views.ring_scene(7, seed=1)[0] != scene


def test_rings_of_another_autoencoder_or_seed_are_not_taken_for_these(folder: Path) -> None:
    base = folder / "miniature" / "text_to_image"
    before = cache_of(folder, "rings", base, 0)
    assert cache_of(folder, "rings", base, 1) != before
    (base / "vae" / "other.safetensors").write_bytes(b"other")
    assert cache_of(folder, "rings", base, 0) != before
    none: Any
    for part, none in (("views", {"num_rings": 0}), ("motion", {"num_clips": 0})):
        with pytest.raises(InputError, match="at least one"):
            list(train_miniature(part, MiniatureConfig(folder=folder, **none)))


def test_the_compiler_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="omit --compile"):
        list(train_miniature("views", MiniatureConfig(folder=folder, compile=True)))
