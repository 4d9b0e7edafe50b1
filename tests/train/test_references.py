"""Training on pairs that refer to pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.diffusion.config import TrainingConfig
from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.editor import EditModel
from restage.diffusion.references import PictureTokens
from restage.diffusion.training import read_metrics
from restage.records import InputError
from restage.scenes.references import ShownPicture
from restage.train.batches import sample_edit_batch
from restage.train.config import ExampleMix, TrainConfig
from restage.train.examples import ExactPair, Examples, encode_examples
from restage.train.stage import train_edit_model
from tests.train.tiny import CHANNELS, tiny_backbone, tiny_pair

KINDS = ("look", "recolour", "look", "swap")


def pairs() -> list[ExactPair]:
    """Of four pairs the second has no reference."""
    made = []
    for index, kind in enumerate(KINDS):
        pair = tiny_pair(index, kind=kind, instruction=f"as the picture, number {index}", undo="make it red")
        shown = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(index))
        mask = torch.zeros(20, 30)
        mask[4:12, 3:18] = 1
        made.append(pair if kind == "recolour" else pair._replace(reference=ShownPicture(shown, mask)))
    return made


def encode(folder: Path, given: list[ExactPair], **how) -> Examples:
    steps = encode_examples(given, tiny_backbone(), folder, **how)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_references_are_encoded_for_pairs_and_mirror_images(tmp_path: Path) -> None:
    examples = encode(tmp_path, pairs(), with_references=True)
    assert examples.references is not None
    shown = examples.references[torch.arange(8)].float()
    assert shown.shape == (8, CHANNELS + 1, 8, 8)
    has = shown[:, -1].flatten(1).amax(dim=1) > 0
    assert has.tolist() == [True, False, True, True] * 2
    assert float(shown[~has].abs().max()) == 0
    assert float((shown[4] - shown[0]).abs().max()) > 0.01  # cut out anew, and mirrored
    assert encode(tmp_path, pairs(), with_references=True).id == examples.id
    assert encode(tmp_path, pairs()).references is None


def test_a_reference_comes_with_its_own_instruction_alone(tmp_path: Path) -> None:
    examples = encode(tmp_path, pairs(), with_references=True)
    none = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0, "backwards_share": 0.0, "identity_share": 0.0}

    def shown(**shares: float) -> list[bool]:
        mix = ExampleMix(**(none | {"mirror_share": 0.0} | shares))  # pyright: ignore[reportArgumentType]
        batch = sample_edit_batch(examples, mix, batch_size=4, seed=0, step=0)
        assert batch.reference is not None
        return sorted((batch.reference[:, -1].flatten(1).amax(dim=1) > 0).tolist())

    assert shown() == [False, True, True, True] == shown(mirror_share=1.0)
    assert not any(shown(drop_text=1.0)) and not any(shown(backwards_share=1.0))
    assert shown(identity_share=1.0) == [False, True, True, True]  # asked for again, on the edited picture


@pytest.mark.parametrize("arm", ["words", "beside", "tokens"])
def test_a_training_with_references_goes_on_where_it_was_stopped(arm, tmp_path: Path) -> None:
    training = TrainingConfig(num_steps=3, batch_size=4, learning_rate=1e-3, num_warmup_steps=1, checkpoint_every_s=0.0)
    config = TrainConfig(training=training, train_text_encoder=True, references=arm)
    backbone = tiny_backbone()
    list(train_edit_model(pairs(), backbone, tmp_path / "whole", config))
    steps = train_edit_model(pairs(), backbone, tmp_path / "stopped", config)
    while "noise" not in next(steps).note:
        pass
    next(steps)
    steps.close()
    assert all("TwoSources" not in type(one).__name__ for one in backbone.unet.attn_processors.values())
    list(train_edit_model(pairs(), backbone, tmp_path / "stopped", config))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "stopped")
    models = [load_edit_model(tmp_path / name) for name in ("whole", "stopped")]
    assert all(model.reader.name == arm for model in models)
    for name, value in models[0].unet.state_dict().items():
        assert torch.equal(value, models[1].unet.state_dict()[name])
    if arm == "tokens":
        reader = models[0].reader
        assert isinstance(reader, PictureTokens) and float(reader.picture_weights.abs().min()) > 0
        # It can be trained on, and then begins with the tokens that it has.
        more = dataclasses.replace(config, training=dataclasses.replace(training, num_steps=1))
        list(train_edit_model(pairs(), models[0], tmp_path / "further", more))
        assert load_edit_model(tmp_path / "further").reader.name == "tokens"
        _assert_begins_without_pictures_as_it_was(models[0], dataclasses.replace(config, training=training), tmp_path)
        other = dataclasses.replace(config, references="beside")
        with pytest.raises(InputError, match="holds a training with another config"):
            list(train_edit_model(pairs(), backbone, tmp_path / "whole", other))


def _assert_begins_without_pictures_as_it_was(model: EditModel, config: TrainConfig, folder: Path) -> None:
    """Train a model with picture tokens on without pictures, at a rate of next to nothing."""
    assert isinstance(model.reader, PictureTokens)
    model.reader.text_weights.mul_(0.5)
    training = dataclasses.replace(config.training, num_steps=1, learning_rate=1e-9, weight_decay=0.0)
    words = dataclasses.replace(config, training=training, references="words")
    list(train_edit_model(pairs(), model, folder / "without", words))
    without = load_edit_model(folder / "without")
    generator = torch.Generator().manual_seed(4)
    inputs, text = torch.randn(2, 2 * CHANNELS, 8, 8, generator=generator), model.backbone.encode_text(["red", "blue"])
    told = (inputs, torch.tensor([100, 700]), text, None)
    assert without.reader.name == "words"
    with torch.no_grad():
        torch.testing.assert_close(
            without.reader.read(without.unet, *told), model.reader.read(model.unet, *told), rtol=2e-2, atol=2e-3
        )
