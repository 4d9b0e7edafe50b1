from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.branches import BranchRecord, build_branch, out_layers, save_branch
from restage.diffusion.conditions import num_channels, slots_of
from restage.diffusion.config import BranchSource, TrainingConfig
from restage.diffusion.sampling import initial_noise, latent_shape, sample_images
from restage.records import InputError
from restage.train.config import BranchConfig
from restage.train.control import BranchBatch, BranchData, drop_conditions, train_branch
from tests.tiny_models import write_tiny_models

NAMES = ("depth", "ids")
TRAINING = TrainingConfig(num_steps=4, batch_size=4, learning_rate=1e-2, num_warmup_steps=1, is_bf16=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models")) / "text_to_image"


@pytest.fixture
def backbone(base: Path) -> Backbone:
    return load_backbone(base)


def data_for(backbone: Backbone) -> BranchData:
    def batch(step: int, generator: torch.Generator) -> BranchBatch:
        conditions = torch.rand(4, num_channels(NAMES), *backbone.picture_size, generator=generator)
        clean = initial_noise(latent_shape(backbone), [step, 1, 2, 3])
        return BranchBatch(clean, ["a ball", "", "a red cube", "a cone"], conditions, torch.tensor([1.0, 1, 0, 1]))

    return BranchData(NAMES, "data-1", batch, near=1.5)


def trained(backbone: Backbone, folder: Path, config: BranchConfig, stop_after: int = 99, **how: Any) -> Path:
    training = dataclasses.replace(TRAINING, checkpoint_every_s=0.0, **how)
    steps = train_branch(
        backbone, data_for(backbone), config, training=training, state=folder / "state", folder=folder / "branch"
    )
    for step in steps:
        if step.done == stop_after:
            break
    return folder / "branch"


ARMS = [
    BranchConfig(width=16),
    BranchConfig(width=16, injection="zero_conv"),
    BranchConfig(width=16, placement="down_0", arm="branch-only"),
    BranchConfig(width=16, placement="mid"),
    BranchConfig(arm="controlnet"),
]


@pytest.mark.parametrize("config", ARMS, ids=lambda config: config.name)
def test_a_branch_is_trained_beside_a_unet_that_stays_as_it_is(
    backbone: Backbone, base: Path, tmp_path: Path, config: BranchConfig
) -> None:
    before = {name: weight.clone() for name, weight in backbone.unet.state_dict().items()}
    folder = trained(backbone, tmp_path, config)
    for name, weight in backbone.unet.state_dict().items():
        assert torch.equal(weight, before[name])
    assert not any(module._forward_hooks for module in backbone.unet.modules())
    steered = load_backbone(base, branches=[BranchSource(folder=folder)])
    change = steered.branches[0].to_out
    assert len(change) == (2 * len(out_layers(backbone.unet)) if config.arm == "branch" else 0)
    assert all(bool(delta.any()) for delta in change.values())
    assert steered.branches[0].near == 1.5
    layout = {"depth": torch.rand(1, 128, 128), "ids": slots_of(torch.randint(0, 4, (128, 128)))}
    found = sample_images(steered.steered([layout]), ["a ball"], seeds=[1], steps=2)
    plain = sample_images(steered, ["a ball"], seeds=[1], steps=2)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("config", [ARMS[0], ARMS[4]], ids=lambda config: config.name)
def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    backbone: Backbone, tmp_path: Path, config: BranchConfig
) -> None:
    whole = trained(backbone, tmp_path / "whole", config)
    trained(backbone, tmp_path / "stopped", config, stop_after=2)
    assert not (tmp_path / "stopped" / "branch").exists()
    again = trained(backbone, tmp_path / "stopped", config)
    for path in whole.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    with pytest.raises(InputError, match="another config"):
        trained(backbone, tmp_path / "whole", dataclasses.replace(config, drop_text=0.2), num_steps=5)


def test_every_weight_of_a_branch_is_trained(backbone: Backbone, tmp_path: Path) -> None:
    first, last = (
        load_file(trained(backbone, tmp_path / str(n), ARMS[1], num_steps=n) / "diffusion_pytorch_model.safetensors")
        for n in (1, 4)
    )
    # Behind a convolution that starts at zero, what lies before it learns from the second step on.
    assert [name for name, weight in first.items() if torch.equal(weight, last[name])] == []


def test_a_copied_encoder_has_no_place_or_width_to_choose() -> None:
    settings: Any
    for settings in ({"placement": "mid"}, {"injection": "zero_conv"}, {"width": 16}):
        with pytest.raises(InputError, match="are for other arms"):
            BranchConfig(arm="controlnet", **settings)


def test_a_branch_that_is_saved_over_another_keeps_nothing_of_it(
    backbone: Backbone, base: Path, tmp_path: Path
) -> None:
    branch, record = build_branch(backbone.unet, NAMES, width=16), BranchRecord(conditions=NAMES)
    change = {f"{name}.bias": torch.ones_like(layer.bias) for name, layer in out_layers(backbone.unet).items()}
    for to_out in (change, {}):
        save_branch(branch, tmp_path / "branch", record, to_out)
        loaded = load_backbone(base, branches=[BranchSource(folder=tmp_path / "branch")])
        assert loaded.branches[0].to_out.keys() == to_out.keys()


def test_conditions_are_left_out_together_or_but_for_one() -> None:
    config = BranchConfig(drop_control=0.2, alone_share=0.2)
    generator = torch.Generator().manual_seed(0)
    kept, is_steered = drop_conditions(torch.ones(2000, 9, 1, 1), NAMES, config, generator)
    has_depth, has_ids = kept[:, 0, 0, 0] > 0, kept[:, 1:, 0, 0].all(dim=1)
    for share in (~is_steered.bool(), has_depth & ~has_ids, has_ids & ~has_depth):
        assert 0.17 < float(share.float().mean()) < 0.23
    assert bool((has_depth | has_ids).all()) and bool((has_ids == kept[:, 1:, 0, 0].any(dim=1)).all())


def test_a_compiled_training_is_refused_before_it_begins(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="omit --training.is-compiled"):
        trained(backbone, tmp_path, ARMS[0], is_compiled=True)
    assert not (tmp_path / "state").exists()
