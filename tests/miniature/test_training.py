"""Training of the miniature's parts: the same after a stop, on other devices, and from other weights."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers.models import UNet2DConditionModel

from miniature import autoencoder, clip, probe, text_to_image
from miniature.command import MiniatureConfig, train_miniature
from miniature.grounding import WordTargets
from miniature.pictures import Pictures
from miniature.probe_pictures import concatenate_labels, render_labeled
from miniature.rendered_pairs import (
    render_pairs,
)
from miniature.tokenizer import MAX_TOKENS
from restage.diffusion.backbone import load_backbone, load_vae, save_tokenizer
from restage.diffusion.clip import load_clip
from restage.diffusion.config import TrainingConfig
from restage.diffusion.loading import load_tokenizer, padded_ids
from restage.diffusion.schedule import Schedule
from restage.diffusion.training import LossFunction, LossParts, read_metrics
from restage.pairs.clip_rule import calibrate, read_clip_rule
from restage.pairs.encoding import ImagePair
from restage.records import InputError, Progress
from restage.run.models import models_in

NUM_EXACT = 10  # pairs that a rule is calibrated on


def test_every_part_trains_and_when_stopped_ends_with_the_same_losses(
    tokenizer, small_set: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = list(render_pairs(NUM_EXACT, seed=clip.RECIPE.seed))
    monkeypatch.setattr("restage.pairs.clip_rule.MIN_PAIRS", NUM_EXACT)
    monkeypatch.setattr(clip, "NUM_EXACT_PAIRS", NUM_EXACT)
    monkeypatch.setattr(clip, "render_pairs", lambda count, *, seed: exact if (count, seed) == (NUM_EXACT, 0) else [])
    # Every step leaves a checkpoint, which takes longer than the step where the UNet is as wide as the shipped one.
    small = {**text_to_image.build_unet(8).config, "block_out_channels": (16, 16), "attention_head_dim": (1, 1)}
    monkeypatch.setattr(text_to_image, "build_unet", lambda channels: UNet2DConditionModel.from_config(small))

    def run(folder: Path, *, stop: bool) -> None:
        save_tokenizer(tokenizer, folder / "tokenizer")
        for train, recipe in (
            (autoencoder.train_autoencoder, autoencoder.RECIPE),
            (text_to_image.train_text_to_image, text_to_image.RECIPE),
            (clip.train_clip, clip.RECIPE),
        ):
            config = replace(recipe, num_steps=3, batch_size=3, checkpoint_every_s=0.0)
            if stop:
                list(itertools.islice(train(folder, small_set, config), 2))
            list(train(folder, small_set, config))

    run(tmp_path / "whole", stop=False)
    run(tmp_path / "stopped", stop=True)
    for part, num_steps in (("autoencoder", 1), ("decoder", 2), ("text_to_image", 3), ("clip", 3)):
        whole, stopped = (read_metrics(tmp_path / name / "state" / part) for name in ("whole", "stopped"))
        assert len(whole) == num_steps and whole == stopped
    assert load_backbone(tmp_path / "whole" / "text_to_image").encode_text(["a cube"]).shape == (1, MAX_TOKENS, 192)
    rule = read_clip_rule(tmp_path / "whole" / "clip")
    pairs = [ImagePair(id=pair.prompt.id, **pair._asdict(), facts={}) for pair in exact]
    assert rule is not None and rule == calibrate(load_clip(tmp_path / "whole" / "clip"), pairs).rule


class _FirstStepDone(Exception):  # noqa: N818
    """No error: it ends a training after its first step."""


class _FreePictures:
    """In place of the probe's own pictures, which take long to make."""

    def __init__(self, *_: object) -> None:
        drawn, self.labels = zip(*(render_labeled(seed) for seed in range(2)), strict=True)
        self.drawn, self.labels = np.stack(drawn), concatenate_labels(self.labels)

    def __len__(self) -> int:
        return 2

    def images(self, indices: list[int], **_: object) -> np.ndarray:
        return self.drawn[indices]


def _first_step(model: torch.nn.Module, loss_of: LossFunction, **_: object) -> None:
    terms = loss_of(0, torch.Generator().manual_seed(0))
    assert not isinstance(terms, LossParts)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total.device.type == "meta"
    assert any(parameter.grad is not None for parameter in model.parameters())
    raise _FirstStepDone


@pytest.mark.parametrize(
    ("module", "train", "recipe"),
    [
        (autoencoder, autoencoder.train_autoencoder, autoencoder.RECIPE),
        (text_to_image, text_to_image.train_text_to_image, text_to_image.RECIPE),
        (clip, clip.train_clip, clip.RECIPE),
        (probe, probe.train_probe, probe.RECIPE),
    ],
)
def test_a_step_on_another_device_mixes_no_devices(
    small_set: Pictures,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    train: Callable[..., Iterator[Progress]],
    recipe: TrainingConfig,
) -> None:
    # Tensors of the device `meta` have shapes only, and are as little to be mixed with the CPU's as a GPU's are.
    monkeypatch.setattr(module, "train", _first_step)
    monkeypatch.setattr(probe, "make_probe_pictures", lambda *_, **__: iter(()))
    monkeypatch.setattr(probe, "ProbePictures", _FreePictures)
    shutil.copytree(models_in().text_to_image, folder / "text_to_image")
    (folder / "state").mkdir()
    path = text_to_image.cache_of(folder, "latents", folder / "text_to_image").with_suffix(".npy")
    np.save(path, np.zeros((len(small_set), 8, 16, 16), np.float16))
    with pytest.raises(_FirstStepDone):
        list(train(folder, small_set, replace(recipe, batch_size=8), device="meta"))


def test_training_goes_on_from_the_weights_of_another_model(small_set: Pictures, start: Path, tmp_path: Path) -> None:
    shutil.copytree(start / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(start / "vae", tmp_path / "text_to_image" / "vae")
    config = replace(text_to_image.RECIPE, num_steps=1, batch_size=2, learning_rate=1e-9, weight_decay=0.0)
    list(text_to_image.train_text_to_image(tmp_path, small_set, config, start=start))
    _assert_equal_weights(start, tmp_path / "text_to_image")


def test_of_the_start_and_what_was_trained_the_mean_can_be_saved(
    small_set: Pictures, start: Path, tmp_path: Path
) -> None:
    for name in ("whole", "none"):
        shutil.copytree(start / "tokenizer", tmp_path / name / "tokenizer")
        shutil.copytree(start / "vae", tmp_path / name / "text_to_image" / "vae")
    config = replace(text_to_image.RECIPE, num_steps=1, batch_size=2, num_warmup_steps=0, learning_rate=0.1)
    train = text_to_image.train_text_to_image
    list(train(tmp_path / "whole", small_set, config, start=start, start_share=1.0))
    _assert_equal_weights(start, tmp_path / "whole" / "text_to_image")
    list(train(tmp_path / "none", small_set, config, start=start))
    with pytest.raises(AssertionError):
        _assert_equal_weights(start, tmp_path / "none" / "text_to_image")
    with pytest.raises(InputError, match="a start to share"):
        next(train(tmp_path / "none", small_set, config, start_share=0.5))


def _assert_equal_weights(first: Path, second: Path) -> None:
    before, after = load_backbone(first), load_backbone(second)
    for part in ("unet", "text_encoder"):
        weights = getattr(before, part).state_dict()
        for name, value in getattr(after, part).state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=2e-3, atol=1e-5, msg=f"{part} {name}")


@pytest.mark.parametrize(("has_start", "sizes"), [(False, [8, 8, 16, 16, 16, 16]), (True, [16] * 6)])
def test_text_to_image_sees_latents_of_half_the_size_first(
    small_set: Pictures, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_start: bool, sizes: list[int]
) -> None:
    seen: list[int] = []

    def watch(model: torch.nn.Module, loss_of: LossFunction, *, config: TrainingConfig, **_: object) -> Iterator[None]:
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
        for step in range(config.num_steps):
            terms = loss_of(step, torch.Generator().manual_seed(step))
            assert not isinstance(terms, LossParts)
            assert all(torch.isfinite(term) for term in terms.values())
        yield from ()

    monkeypatch.setattr(text_to_image, "train", watch)
    shutil.copytree(start / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(start / "vae", tmp_path / "text_to_image" / "vae")
    config = replace(text_to_image.RECIPE, num_steps=6, batch_size=2)
    list(text_to_image.train_text_to_image(tmp_path, small_set, config, start=start if has_start else None))
    assert seen == sizes


def test_half_the_size_keeps_pictures_and_the_places_of_words() -> None:
    clean, noise = torch.randn(2, 3, 8, 16, 16)
    schedule = Schedule.from_config(text_to_image.SCHEDULER_CONFIG)
    timesteps = torch.tensor([10, 500, 900])
    halved = text_to_image._halve(schedule.add_noise(clean, noise, timesteps))
    torch.testing.assert_close(
        halved, schedule.add_noise(text_to_image._halve(clean), text_to_image._halve(noise), timesteps)
    )
    pixels = torch.zeros(1, 16, 16)
    pixels[0, 4:6, 10:16] = 1
    words = WordTargets(torch.tensor([0]), torch.ones(1, 1), pixels.flatten(1))
    small = text_to_image._halve_words(words).pixels.view(8, 8)
    assert small[2, 5:].tolist() == [1, 1, 1] and small.sum() == 3


def test_crops_are_squares_of_their_own_pictures_half_of_them_mirrored() -> None:
    places = torch.arange(128 * 128.0).view(1, 1, 128, 128)
    images = (places + 128 * 128 * torch.arange(64.0).view(64, 1, 1, 1)).expand(-1, 3, -1, -1)
    crops = autoencoder.random_crops(images, torch.Generator().manual_seed(0))
    assert crops.shape == (64, 3, autoencoder.CROP, autoencoder.CROP)
    corners = set()
    for index, crop in enumerate(crops[:, 0].int()):
        is_mirrored = bool(crop[0, 0] > crop[0, 1])
        upright = crop.flip(1) if is_mirrored else crop
        picture, place = divmod(int(upright[0, 0]), 128 * 128)
        y, x = divmod(place, 128)
        assert picture == index
        assert torch.equal(upright, images[index, 0, y : y + autoencoder.CROP, x : x + autoencoder.CROP].int())
        corners.add((y, x, is_mirrored))
    assert len(corners) > 60
    assert 16 < sum(is_mirrored for *_, is_mirrored in corners) < 48


def test_after_its_first_part_the_autoencoder_trains_its_decoder_alone(small_set: Pictures, tmp_path: Path) -> None:
    config = replace(autoencoder.RECIPE, num_steps=6, batch_size=2, is_bf16=False)
    list(autoencoder.train_autoencoder(tmp_path, small_set, config))
    stages = {name: torch.load(tmp_path / "state" / name / "state.pt") for name in ("autoencoder", "decoder")}
    assert [state["step"] for state in stages.values()] == [2, 4]
    saved = load_vae(tmp_path / "text_to_image" / "vae").state_dict()
    for name, value in saved.items():
        before = stages["autoencoder"]["average"][name].half().to(value.dtype)
        assert torch.equal(value, before) == name.startswith("encoder"), name


def test_a_decoder_that_is_trained_on_leaves_the_latents_as_they_were(small_set: Pictures, tmp_path: Path) -> None:
    start = models_in().text_to_image
    config = replace(autoencoder.RECIPE, num_steps=2, batch_size=2)
    list(autoencoder.train_autoencoder(tmp_path, small_set, config, start=start))
    before, after = load_vae(start / "vae").state_dict(), load_vae(tmp_path / "text_to_image" / "vae").state_dict()
    assert before.keys() == after.keys()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clip starts from nothing"):
        next(train_miniature("clip", MiniatureConfig(folder=tmp_path, start=tmp_path)))
    with pytest.raises(InputError, match="omit --compile"):
        next(train_miniature("probe", MiniatureConfig(folder=tmp_path, compile=True)))
    with pytest.raises(InputError, match="unknown part"):
        next(train_miniature("painter", MiniatureConfig(folder=tmp_path)))


def test_a_start_with_another_tokenizer_gives_its_words_their_vectors(tokenizer) -> None:
    earlier = load_tokenizer(models_in().clip)  # the shipped CLIP is of the first edition
    first = replace(
        load_backbone(models_in().text_to_image),
        tokenizer=earlier,
        text_encoder=text_to_image.build_text_encoder(earlier).eval().requires_grad_(False),
    )
    unet, text_encoder = text_to_image.build_unet(8), text_to_image.build_text_encoder(tokenizer).eval()
    text_to_image.copy_weights(first, tokenizer, unet, text_encoder)
    caption = "a red cube and a big blue ball on grass"
    assert first.tokenizer.get_vocab() != tokenizer.get_vocab()
    told = text_encoder(input_ids=padded_ids(tokenizer, [caption], tokenizer.model_max_length)).last_hidden_state
    known = first.encode_text([caption])
    count = len(caption.split()) + 1
    torch.testing.assert_close(told[:, :count], known[:, :count])
    other = text_to_image.build_unet(4)
    with pytest.raises(InputError, match="other shapes"):
        text_to_image.copy_weights(first, tokenizer, other, text_encoder)


def test_captions_of_no_picture_make_the_contrastive_loss_larger() -> None:
    torch.manual_seed(0)
    pictures, wrong = torch.randn(4, 8), torch.randn(4, 8)
    own = clip.contrastive_loss(pictures, pictures, torch.tensor(5.0))
    far = clip.contrastive_loss(pictures, torch.cat([pictures, -pictures]), torch.tensor(5.0))
    near = clip.contrastive_loss(pictures, torch.cat([pictures, pictures + 0.1 * wrong]), torch.tensor(5.0))
    assert float(own) <= float(far) < float(near)
