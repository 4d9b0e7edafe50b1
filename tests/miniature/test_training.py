from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from miniature import autoencoder, clip, edit_model, pictures, probe, text_to_image
from miniature.command import MiniatureConfig, train_miniature
from miniature.grounding import WordTargets
from miniature.pictures import Pictures, make_pictures, picture_scene
from miniature.probe_pictures import concatenate_labels, render_labeled
from miniature.rendered_pairs import (
    PAIR_KINDS,
    TURNED,
    render_pairs,
    render_referenced_pair,
    render_referenced_pairs,
    write_pictured_prompts,
)
from miniature.tokenizer import MAX_TOKENS, build_tokenizer, shared_tokenizer
from restage.diffusion.backbone import Backbone, load_backbone, load_vae, save_backbone, save_tokenizer
from restage.diffusion.clip import load_clip
from restage.diffusion.config import SamplerConfig, TrainingConfig
from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.schedule import Schedule
from restage.diffusion.training import LossFunction, LossParts, read_metrics
from restage.edit.pictures import read_image
from restage.pairs.clip_rule import MIN_PAIRS, calibrate, read_clip_rule
from restage.pairs.config import GenerateConfig
from restage.pairs.encoding import ImagePair
from restage.prompts.store import read_prompts
from restage.records import InputError, Progress
from restage.run.models import models_in
from restage.train.examples import can_be_mirrored
from restage.world import grammar, second
from restage.world.capture import CHANGE_THRESHOLD, camera_at
from restage.world.description import COLORS, KINDS, PATTERNS, SECOND_EDIT_KINDS
from restage.world.grammar import object_phrase
from restage.world.places import RELATIONS, carriers, places_of, read_place
from tests.tiny_models import tokenizer_of_the_world, write_tiny_models


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of_the_world()


@pytest.fixture
def folder(tokenizer, tmp_path: Path) -> Path:
    """A folder to train in that has its tokenizer, which takes longer to build than these trainings take."""
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained text-to-image model on the shipped autoencoder."""
    torch.manual_seed(3)
    vae = load_vae(models_in().text_to_image / "vae")
    parts = text_to_image.build_text_encoder(tokenizer), text_to_image.build_unet(vae.config["latent_channels"])
    schedule = Schedule.from_config(text_to_image.SCHEDULER_CONFIG)
    folder = tmp_path_factory.mktemp("start") / "text_to_image"
    save_backbone(Backbone(tokenizer, *parts, vae, schedule, text_to_image.SCHEDULER_CONFIG), folder)
    return folder


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "SHARD_SIZE", 6)
        list(make_pictures(folder / "pictures", 12))
    return folder


@pytest.fixture
def small_set(training_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    return Pictures(training_folder / "pictures")


def test_captions_of_three_objects_with_places_fit_the_tokenizer(tokenizer) -> None:
    captions = []
    for seed in range(150):
        scene = second.sample_description(seed, num_objects=3)
        captions += [
            grammar.caption_of(scene, seed, place) for place in places_of(scene, camera_at(float(seed), 0.3, 4.0, 32))
        ]
    assert len(captions) > 1000 and max(len(ids) for ids in tokenizer(captions)["input_ids"]) <= MAX_TOKENS


def test_common_words_are_a_token_or_two_and_rarer_ones_several(tokenizer) -> None:
    lengths = {word: len(tokenizer(word)["input_ids"]) - 2 for word in ("between", "next", "side", "evening", "golden")}
    relations = {word for relation in RELATIONS.values() for form in relation.forms for word in form.split()} - {"{}"}
    lengths |= {word: len(tokenizer(word)["input_ids"]) - 2 for word in (*relations, *KINDS, *COLORS, *PATTERNS)}
    assert {word for word, length in lengths.items() if length > 2} == {"evening", "golden"}


def test_a_folder_with_a_tokenizer_of_the_first_edition_is_refused(tmp_path: Path) -> None:
    shutil.copytree(models_in().text_to_image / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(InputError, match="for 48 tokens"):
        shared_tokenizer(tmp_path)


def test_folder_keeps_its_tokenizer_when_the_world_changes(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniature.tokenizer.build_tokenizer", lambda: tokenizer)
    before = shared_tokenizer(tmp_path).get_vocab()
    monkeypatch.undo()
    monkeypatch.setattr("miniature.tokenizer._world_texts", lambda seed: ["another world altogether"] * 4)
    assert build_tokenizer().get_vocab() != before
    assert shared_tokenizer(tmp_path).get_vocab() == before


def test_pictures_made_in_two_sessions_are_those_of_one(
    training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    next(make_pictures(tmp_path, 12))
    list(make_pictures(tmp_path, 12))
    for path in sorted((training_folder / "pictures").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_pictures_of_another_edition_are_neither_read_nor_added_to(small_set: Pictures, tmp_path: Path) -> None:
    (tmp_path / "shard-00000.json").write_text("[]")  # the first edition's was a list of scenes
    np.save(tmp_path / "shard-00000.npy", small_set.shards[0])
    np.save(tmp_path / "shard-00000.ids.npy", small_set.object_ids[:6])
    for use in (lambda: Pictures(tmp_path), lambda: list(make_pictures(tmp_path, 12))):
        with pytest.raises(InputError, match="another edition of the world"):
            use()
    assert not (tmp_path / "shard-00001.json").exists()


def test_the_places_of_a_picture_hold_in_it_from_its_own_camera(training_folder: Path, small_set: Pictures) -> None:
    said = set()
    for index, places in enumerate(small_set.places):
        scene = picture_scene(index)
        assert places == places_of(scene.shown, scene.camera())
        told = [small_set.place(index, seed) for seed in range(8)]
        assert all(place in places for place in told if place is not None)
        assert None in told
        captions = [small_set.captions([index], seed)[0] for seed in range(8)]
        assert [read_place(caption) is None for caption in captions] == [place is None for place in told]
        said |= {place.relation for place in told if place is not None}
    assert len(said) > 4


def test_in_every_third_shard_one_object_is_gone_and_the_others_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    for index in range(36):
        scene = picture_scene(index)
        if index // 6 % 3 == 2:
            assert len(scene.shown.objects) == len(scene.laid_out.objects) - 1 >= 1
            assert set(scene.shown.objects) < set(scene.laid_out.objects)
            assert sum(item.z > 0 for item in scene.shown.objects) == len(carriers(scene.shown))  # nothing floats
        else:
            assert scene.shown == scene.laid_out
    parted = [scene for scene in map(picture_scene, range(12, 18)) if not carriers(scene.laid_out)]
    alone = [scene.shown.objects for scene in parted if len(scene.shown.objects) == 1]
    assert alone and all(math.hypot(item.x, item.y) > 0.1 for (item,) in alone)


def test_every_part_trains_and_when_stopped_ends_with_the_same_losses(
    tokenizer, small_set: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = list(render_pairs(MIN_PAIRS, seed=clip.RECIPE.seed))
    monkeypatch.setattr(clip, "NUM_EXACT_PAIRS", MIN_PAIRS)
    monkeypatch.setattr(clip, "render_pairs", lambda count, *, seed: exact if (count, seed) == (MIN_PAIRS, 0) else [])

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
    np.save(folder / "state" / "latents.npy", np.zeros((len(small_set), 8, 16, 16), np.float16))
    with pytest.raises(_FirstStepDone):
        list(train(folder, small_set, replace(recipe, batch_size=8), device="meta"))


def test_training_goes_on_from_the_weights_of_another_model(small_set: Pictures, start: Path, tmp_path: Path) -> None:
    shutil.copytree(start / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(start / "vae", tmp_path / "text_to_image" / "vae")
    config = replace(text_to_image.RECIPE, num_steps=1, batch_size=2, learning_rate=1e-9, weight_decay=0.0)
    list(text_to_image.train_text_to_image(tmp_path, small_set, config, start=start))
    before, after = load_backbone(start), load_backbone(tmp_path / "text_to_image")
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


def test_a_start_with_another_tokenizer_is_refused(small_set: Pictures, folder: Path) -> None:
    start = models_in().text_to_image
    shutil.copytree(start / "vae", folder / "text_to_image" / "vae")
    with pytest.raises(InputError, match="another tokenizer"):
        list(text_to_image.train_text_to_image(folder, small_set, start=start))


def test_training_sets_show_several_objects_more_often_than_one(training_folder: Path, small_set: Pictures) -> None:
    counts = [len(description.objects) for description in small_set.descriptions]
    assert counts[:5] == list(pictures.NUM_OBJECTS) and min(counts[5:]) == 1


def test_pictures_are_drawn_in_the_shares_that_are_asked_for(small_set: Pictures) -> None:
    chances = small_set.chances((0.1, 0.3, 0.6))
    counts = torch.tensor([len(description.objects) for description in small_set.descriptions])
    shares = torch.stack([chances[counts == number].sum() for number in (1, 2, 3)]) / chances.sum()
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]))


def test_captions_from_the_left_name_objects_as_they_stand_in_the_picture(small_set: Pictures) -> None:
    several = [i for i, d in enumerate(small_set.descriptions) if len(d.objects) > 1]
    plain, seeds = 0, range(4)
    for index, seed in itertools.product(several, seeds):
        (caption,), (unordered,) = small_set.captions_from_the_left([index], seed), small_set.captions([index], seed)
        assert sorted(caption) == sorted(unordered)
        place = small_set.place(index, seed)
        # What a place tells stands at the end, and says the same in either order.
        assert read_place(caption) == read_place(unordered)
        ids, objects = small_set.object_ids[index], small_set.descriptions[index].objects
        middles = {o.kind: np.nonzero(ids == 2 + number)[1].mean() for number, o in enumerate(objects)}
        told = {words.split()[-1] for words in (place.subject, *place.anchors)} if place else set()
        named = sorted(middles.keys() - told, key=caption.index)
        assert [middles[kind] for kind in named] == sorted(middles[kind] for kind in named)
        plain += len(named) > 1
    assert plain > 3
    assert small_set.captions_from_the_left(several, 0) != small_set.captions(several, 0)


def test_wrong_captions_are_those_of_other_scenes(small_set: Pictures) -> None:
    indices, placed = list(range(len(small_set))), {True: 0, False: 0}
    for seed in range(10):
        for index, wrong in zip(indices, clip._wrong_captions(small_set, indices, seed), strict=True):
            scene, place = small_set.descriptions[index], read_place(wrong)
            is_of_scene = all(object_phrase(item) in wrong for item in scene.objects)
            is_of_scene &= scene.ground in wrong.split() or f"{scene.ground}," in wrong.split()
            if is_of_scene and place is not None and wrong.count(" a ") + wrong.count(" an ") >= len(scene.objects):
                placed[place in small_set.places[index]] += 1
            assert "#" not in wrong
    assert placed[False] > 5


def test_captions_of_no_picture_make_the_contrastive_loss_larger() -> None:
    torch.manual_seed(0)
    pictures, wrong = torch.randn(4, 8), torch.randn(4, 8)
    own = clip.contrastive_loss(pictures, pictures, torch.tensor(5.0))
    far = clip.contrastive_loss(pictures, torch.cat([pictures, -pictures]), torch.tensor(5.0))
    near = clip.contrastive_loss(pictures, torch.cat([pictures, pictures + 0.1 * wrong]), torch.tensor(5.0))
    assert float(own) <= float(far) < float(near)


def test_exact_pairs_come_of_every_kind_and_change_what_their_masks_say() -> None:
    assert set(PAIR_KINDS) - {TURNED} == set(SECOND_EDIT_KINDS) - {"look"}
    pairs = list(render_pairs(len(PAIR_KINDS), seed=3))
    assert [pair.prompt.kind for pair in pairs] == ["remove" if kind == TURNED else kind for kind in PAIR_KINDS]
    for pair in pairs:
        change = (pair.edited - pair.source).abs().amax(0)
        assert bool(((change > CHANGE_THRESHOLD) == (pair.mask > 0)).all())
        assert float(pair.mask.mean()) > 0.002
        assert pair.prompt.source != pair.prompt.target
        assert can_be_mirrored(pair.prompt) or re.search("left|right", str(pair.prompt))
        named = {word for text in (pair.prompt.source, pair.prompt.target) for word in text.replace(",", "").split()}
        assert set(pair.prompt.words) <= named
    turned = [pair.prompt for pair, kind in zip(pairs, PAIR_KINDS, strict=True) if kind == TURNED]
    for prompt in turned:  # undoing it adds at a place what the source says
        place = read_place(prompt.undo)
        assert place is not None and place.subject in prompt.source and place.subject not in prompt.target
    additions = [pair.prompt for pair in pairs if pair.prompt.kind in ("add", "move")]
    assert all(read_place(prompt.instruction) and read_place(prompt.target) for prompt in additions)


def test_pictured_prompts_show_one_side_of_which_half_of_the_removals_show_the_other(tmp_path: Path) -> None:
    count = 2 * len(PAIR_KINDS)
    list(write_pictured_prompts(tmp_path, count, seed=3))
    pairs, exact = read_prompts(tmp_path / "prompts.jsonl"), list(render_pairs(count, seed=3))
    after = [pair for pair in pairs if pair.pictured == "target"]
    removals = [pair for pair, kind in zip(pairs, 2 * PAIR_KINDS, strict=True) if kind == "remove"]
    assert 0.15 < len(after) / len(removals) < 0.85 and all(pair in removals for pair in after)
    assert all(pair.is_painted_behind for pair in pairs if pair.kind == "remove" and pair not in after)
    for pair, truth in zip(pairs, exact, strict=True):
        assert replace(pair, picture="", pictured="source") == truth.prompt
        expected = truth.edited if pair.pictured == "target" else truth.source
        torch.testing.assert_close(read_image(tmp_path / pair.picture), expected, rtol=0, atol=1 / 255)
    first = tmp_path / pairs[0].picture
    first.write_bytes((tmp_path / pairs[1].picture).read_bytes())  # what is there is kept
    list(write_pictured_prompts(tmp_path, 2, seed=3))
    assert first.read_bytes() == (tmp_path / pairs[1].picture).read_bytes()


def _short_recipe() -> edit_model.EditModelRecipe:
    """Four prompts, three pairs, one step of training."""
    recipe = edit_model.RECIPE
    generate = GenerateConfig(sampler=SamplerConfig(num_steps=2))
    made = replace(recipe.made, num_prompts=4, pairs=replace(recipe.made.pairs, generate=generate))
    training = replace(recipe.train.training, num_steps=1, batch_size=2)
    return replace(recipe, made=made, num_pairs=3, train=replace(recipe.train, training=training))


def test_an_edit_model_can_be_trained_on(tmp_path: Path) -> None:
    shipped = models_in()
    (tmp_path / "text_to_image").symlink_to(shipped.text_to_image)
    list(edit_model.train_edit(tmp_path, _short_recipe(), version="exact", start=shipped.edit_model))
    before, after = load_edit_model(shipped.edit_model), load_edit_model(tmp_path / "edit_model_exact")
    for name in ("unet", "text_encoder"):  # one step of a warm-up changes next to nothing
        old, new = (getattr(m if name == "unet" else m.backbone, name).state_dict() for m in (before, after))
        assert all(float((old[key].float() - new[key].float()).abs().max()) < 1e-3 for key in old)
        assert any(not torch.equal(old[key], new[key]) for key in old)
    with pytest.raises(InputError, match="holds no model to start from"):
        list(edit_model.train_edit(tmp_path, _short_recipe(), version="exact", start=tmp_path))


def test_versions_of_the_edit_model_are_trained_alike_on_other_pairs(tmp_path: Path) -> None:
    models = models_in()
    for name in ("text_to_image", "clip"):
        shutil.copytree(getattr(models, name), tmp_path / name)
    recipe = _short_recipe()
    for version in ("unfiltered", "exact"):
        list(edit_model.train_edit(tmp_path, recipe, version=version))
        assert load_edit_model(tmp_path / f"edit_model_{version}").has_mask_output
        assert len(read_metrics(tmp_path / "state" / f"edit_model_{version}")) == 1
    made_once = {path.name for path in (tmp_path / "state").iterdir() if path.name.endswith("_pairs")}
    assert made_once == {"edit_model_pairs"}
    direction = replace(edit_model.NO_RULE, min_direction_similarity=2.0)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    with pytest.raises(InputError, match="at least 3 accepted pairs, got 0"):  # of those that were made before
        list(edit_model.train_edit(moved, replace(recipe, rule=direction), version="filtered"))


def test_shipped_models_load_and_keep_within_their_size() -> None:
    models = models_in()
    root = models.text_to_image.parent
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 48e6
    assert load_edit_model(models.edit_model).has_mask_output
    image = torch.from_numpy(np.full((1, 3, 128, 128), 0.5, np.float32))
    assert load_clip(models.clip).encode_images(image).norm() == pytest.approx(1.0, abs=1e-5)


def test_an_edit_model_learns_to_look_at_pictures_by_one_command(tmp_path: Path) -> None:
    models = write_tiny_models(tmp_path / "miniature")
    recipe = edit_model.REFERENCE_RECIPE
    training = replace(recipe.train.training, num_steps=2, batch_size=4)
    recipe = replace(recipe, num_pairs=8, train=replace(recipe.train, training=training))
    for arm in ("beside", "tokens"):
        list(edit_model.train_with_references(models, arm, recipe))
        trained = load_edit_model(models / f"edit_model_{arm}")
        assert trained.reader.name == arm and trained.guidance == edit_model.GUIDANCE
    assert (models / "edit_model_tokens" / "picture_tokens.safetensors").is_file()


def test_three_in_four_pairs_for_that_refer_to_a_picture() -> None:
    pairs = list(render_referenced_pairs(16, seed=5))
    kinds = [pair.prompt.kind for pair in pairs]
    assert {"look", "swap", "recolour"} <= set(kinds)
    shown = [pair for pair in pairs if pair.reference is not None]
    assert 10 <= len(shown) <= 12
    for pair in pairs:
        change = (pair.edited - pair.source).abs().amax(0)
        assert bool(((change > CHANGE_THRESHOLD) == (pair.mask > 0)).all())
        assert (pair.reference is not None) or pair.prompt.kind not in ("look", "swap")
    torch.testing.assert_close(render_referenced_pair(3, 5).edited, pairs[3].edited)
