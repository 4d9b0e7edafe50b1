from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from restage.diffusion.backbone import save_backbone
from restage.diffusion.config import TrainingConfig
from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.editor import EditModel, EditSettings, Guidance, edit_images
from restage.records import InputError
from restage.run.folder import RunFolder
from restage.train.config import ExampleMix, LossWeights, TrainConfig
from restage.train.examples import TrainingPair
from restage.train.stage import load_start, run_train, train_edit_model
from tests.train.tiny import CHANNELS, tiny_backbone, tiny_pair, tiny_unet


def make_config(num_steps: int, **options) -> TrainConfig:
    settings = {"batch_size": 4, "is_bf16": False, "checkpoint_every_s": 0.0, "num_warmup_steps": 2, **options}
    return TrainConfig(training=TrainingConfig(num_steps=num_steps, **settings))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "unet").glob("*.safetensors")))


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def pairs():
    return [tiny_pair(index) for index in range(6)]


def test_a_rendered_pair_is_a_training_pair(pairs):
    assert isinstance(pairs[0], TrainingPair)


@pytest.fixture(scope="module")
def whole(backbone, pairs, tmp_path_factory) -> Path:
    """A training of four steps that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    *_, last = train_edit_model(pairs, backbone, folder, make_config(4))
    assert (last.stage, last.done, last.total) == ("train", 4, 4)
    return folder


@pytest.mark.parametrize("killed_after", [1, 3])
def test_training_that_was_killed_ends_with_the_same_weights(
    backbone, pairs, whole: Path, tmp_path: Path, killed_after: int
):
    config = make_config(4)
    killed = train_edit_model(pairs, backbone, tmp_path / "killed", config)
    steps = (progress for progress in killed if progress.note.startswith("loss"))
    for _ in range(killed_after):
        next(steps)
    killed.close()
    assert not (tmp_path / "killed" / "edit_model.json").exists()
    rest = list(train_edit_model(pairs, backbone, tmp_path / "killed", config))
    assert [progress.done for progress in rest if progress.note.startswith("loss")][0] == killed_after + 1
    expected, found = weights_of(whole), weights_of(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()


def test_a_kill_before_the_first_checkpoint_leaves_no_step_twice(backbone, pairs, tmp_path: Path):
    config = make_config(3, checkpoint_every_s=1e9)
    killed = train_edit_model(pairs, backbone, tmp_path, config)
    next(progress for progress in killed if progress.note.startswith("loss"))
    killed.close()
    list(train_edit_model(pairs, backbone, tmp_path, config))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_training_leaves_metrics_a_curve_and_a_model_that_edits(pairs, whole: Path):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(rows[0]["noise"] + rows[0]["mask"], rel=1e-5)
    with Image.open(whole / "loss.png") as picture:
        assert picture.width > 300
    model = load_edit_model(whole)
    assert model.has_mask_output
    views = torch.stack([pair.source for pair in pairs])
    settings = EditSettings(steps=2, use_bfloat16=False)
    edited = edit_images(
        model, views, views, "make the cube blue", noise_level=1.0, seeds=list(range(6)), settings=settings
    )
    assert edited.images.shape == views.shape and bool(edited.images.isfinite().all())


def test_training_learns_where_the_edit_is(backbone, pairs, tmp_path: Path):
    mix = ExampleMix(drop_text=0.0, drop_image=0.0, drop_both=0.0, mirror_share=0.0, identity_share=0.0)
    config = dataclasses.replace(
        make_config(100, learning_rate=2e-2, ema_decay=0.9, checkpoint_every_s=1e9, batch_size=6),
        mix=mix,
        weights=LossWeights(mask=1.0),
    )
    list(train_edit_model(pairs, backbone, tmp_path, config))
    views, truth = torch.stack([pair.source for pair in pairs]), torch.stack([pair.mask for pair in pairs])
    settings = EditSettings(steps=4, guidance=Guidance(text=1.0, image=1.0), use_bfloat16=False)
    masks = edit_images(
        load_edit_model(tmp_path),
        views,
        views,
        "make the cube blue",
        noise_level=1.0,
        seeds=list(range(6)),
        settings=settings,
    ).masks
    assert float(masks[truth == 1].mean()) > 3 * float(masks[truth == 0].mean())


def test_training_goes_on_from_an_edit_model_and_leaves_it_as_it_was(backbone, pairs, tmp_path: Path):
    list(train_edit_model(pairs, backbone, tmp_path / "first", make_config(2)))
    first = load_start(tmp_path / "first")
    assert isinstance(first, EditModel)
    before = {name: value.clone() for name, value in first.unet.state_dict().items()}
    list(train_edit_model(pairs, first, tmp_path / "second", make_config(1, learning_rate=1e-12)))
    for name, value in load_edit_model(tmp_path / "second").unet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in first.unet.state_dict().items())


def test_a_text_encoder_that_is_trained_is_saved_with_the_model(backbone, pairs, tmp_path: Path):
    shared = tmp_path / "text_to_image"
    save_backbone(backbone, shared)
    before = backbone.encode_text(["make the cube blue"])
    for name, trains_text in (("frozen", False), ("trained", True)):
        config = dataclasses.replace(make_config(2, learning_rate=1e-2), train_text_encoder=trains_text)
        list(train_edit_model(pairs, backbone, tmp_path / name, config, text_to_image=shared))
    assert torch.equal(backbone.encode_text(["make the cube blue"]), before)
    frozen, trained = load_edit_model(tmp_path / "frozen"), load_edit_model(tmp_path / "trained")
    assert not frozen.has_own_text_encoder and not (tmp_path / "frozen" / "text_encoder").exists()
    torch.testing.assert_close(frozen.backbone.encode_text(["make the cube blue"]), before, rtol=0, atol=0.01)
    assert trained.has_own_text_encoder and not (tmp_path / "trained" / "vae").exists()
    assert (trained.backbone.encode_text(["make the cube blue"]) - before).abs().max() > 0.05
    # Training that goes on from it keeps its text encoder, trained further or not.
    list(train_edit_model(pairs, trained, tmp_path / "second", make_config(1), text_to_image=shared))
    texts = [model.backbone.encode_text(["no"]) for model in (trained, load_edit_model(tmp_path / "second"))]
    torch.testing.assert_close(*texts, rtol=0, atol=0.01)


def test_training_with_its_text_encoder_that_was_killed_ends_with_the_same_weights(backbone, pairs, tmp_path: Path):
    config = dataclasses.replace(make_config(3), train_text_encoder=True)
    list(train_edit_model(pairs, backbone, tmp_path / "whole", config))
    killed = train_edit_model(pairs, backbone, tmp_path / "killed", config)
    next(progress for progress in killed if progress.note.startswith("loss"))
    killed.close()
    list(train_edit_model(pairs, backbone, tmp_path / "killed", config))
    for part in ("unet", "text_encoder"):
        expected, found = (
            load_file(next((tmp_path / name / part).glob("*.safetensors"))) for name in ("whole", "killed")
        )
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_published_edit_model_is_given_a_mask_output(backbone, pairs, tmp_path: Path):
    stock = EditModel(backbone, tiny_unet(inputs=2 * CHANNELS), condition_scale=0.5)
    list(train_edit_model(pairs, stock, tmp_path, make_config(1)))
    model = load_edit_model(tmp_path)
    assert model.has_mask_output and model.condition_scale == 0.5


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no model to start from"):
        load_start(tmp_path)


def test_the_stage_trains_once_and_then_finds_itself_done(backbone, pairs, tmp_path: Path):
    save_backbone(backbone, tmp_path / "text_to_image")
    run = RunFolder.open(tmp_path / "run", {}, seed=1)
    config = make_config(2)
    list(run_train(run, config, start=tmp_path / "text_to_image", pairs=pairs))
    assert load_edit_model(tmp_path / "run" / "train").has_mask_output
    again = list(run_train(run, config, start=tmp_path / "text_to_image", pairs=pairs))
    assert [progress.note for progress in again] == ["already done"]
    with pytest.raises(InputError, match="another config"):
        list(run_train(run, make_config(3), start=tmp_path / "text_to_image", pairs=pairs))


def test_a_training_that_was_stopped_goes_on_with_the_same_pairs_start_and_config_alone(
    backbone, pairs, tmp_path: Path
):
    config = make_config(3)
    killed = train_edit_model(pairs, backbone, tmp_path, config)
    next(progress for progress in killed if progress.note.startswith("loss"))
    killed.close()
    other = tiny_backbone()
    other.unet.requires_grad_(False).conv_in.weight.add_(0.1)
    others = (
        (pairs[:5], backbone, config),
        ([tiny_pair(0, instruction="another"), *pairs[1:]], backbone, config),
        (pairs, other, config),
        (pairs, backbone, dataclasses.replace(config, mix=ExampleMix(identity_share=0.5))),
        (pairs, backbone, dataclasses.replace(config, noise_shift=2.0)),
    )
    for changed in others:
        with pytest.raises(InputError, match="another config, start or pairs"):
            list(train_edit_model(changed[0], changed[1], tmp_path, changed[2]))
    list(train_edit_model(pairs, backbone, tmp_path, config))
    assert load_edit_model(tmp_path).has_mask_output
