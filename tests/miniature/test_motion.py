from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import motion
from miniature.command import MiniatureConfig, train_miniature
from restage.diffusion.backbone import load_backbone
from restage.diffusion.motion import load_motion
from restage.diffusion.training import read_metrics
from restage.records import InputError
from tests.tiny_models import write_tiny_models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(motion, "SHARD_SIZE", 2)
    write_tiny_models(tmp_path / "miniature")
    return tmp_path


def config(folder: Path, num_steps: int) -> MiniatureConfig:
    return MiniatureConfig(folder=folder, num_clips=4, num_steps=num_steps, batch_size=16)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    unet = load_backbone(folder / "miniature" / "text_to_image").unet
    return dict(load_motion(folder / "miniature" / "motion", unet).state_dict())


def test_training_that_was_stopped_goes_on_to_the_same_attention(folder: Path) -> None:
    steps = list(train_miniature("motion", config(folder, 4)))
    assert [step.stage for step in steps] == ["clips"] * 2 + ["motion"] * 4
    whole = weights(folder)
    (cache,) = (folder / "miniature" / "state").glob("clips-*")
    assert [np.load(path).shape for path in sorted(cache.glob("*.npy"))] == [(2, 8, 4, 16, 16)] * 2
    metrics = read_metrics(folder / "miniature" / "state" / "motion")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4] and all(row["loss"] > 0 for row in metrics)
    assert any(bool(value.any()) for name, value in whole.items() if name.endswith("proj_out.weight"))
    (folder / "miniature" / "state" / "motion").rename(folder / "miniature" / "state" / "first")
    list(train_miniature("motion", config(folder, 2)))
    assert not all(torch.equal(value, whole[name]) for name, value in weights(folder).items())
    list(train_miniature("motion", config(folder, 4)))
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_clips_of_the_training_set_move_in_every_way() -> None:
    found = {(motion.motion_clip(index).motion, motion.KINDS[index][1]) for index in range(len(motion.KINDS))}
    assert found == {(kind, moves) for kind in ("slide", "turn", "sun") for moves in (False, True)} | {("still", True)}


def test_the_compiler_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="omit --compile"):
        list(train_miniature("motion", MiniatureConfig(folder=folder, compile=True)))
