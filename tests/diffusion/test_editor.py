from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from restage.diffusion.backbone import Backbone, save_backbone
from restage.diffusion.edit_models import (
    START_MASK_PROBABILITY,
    add_mask_output,
    edit_weights_sha256,
    load_edit_model,
    save_edit_model,
    widen_unet,
)
from restage.diffusion.editor import EditCondition, EditModel, EditSettings, Guidance, edit_images
from restage.records import InputError
from tests.train.tiny import CHANNELS, WIDTH, tiny_backbone, tiny_unet

FAST = EditSettings(steps=3, use_bfloat16=False)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> EditModel:
    unet = widen_unet(backbone.unet)
    with torch.no_grad():  # as if trained: the original and the mask say something
        unet.conv_in.weight[:, CHANNELS:] = 0.1 * draw(8, CHANNELS, 3, 3)
        unet.conv_out.weight[CHANNELS] = 0.1 * draw(8, 3, 3, seed=1)
    return EditModel(backbone, unet)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def test_a_widened_unet_predicts_what_the_old_one_did_whatever_the_original():
    old = tiny_unet()
    wide = widen_unet(old)
    noisy, text, t = draw(2, CHANNELS, 8, 8), draw(2, 5, WIDTH), torch.tensor([3, 700])
    with torch.no_grad():
        expected = old(noisy, t, encoder_hidden_states=text).sample
        found = wide(torch.cat([noisy, draw(2, CHANNELS, 8, 8, seed=1)], 1), t, encoder_hidden_states=text).sample
    torch.testing.assert_close(found[:, :CHANNELS], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[:, CHANNELS].sigmoid(), torch.full((2, 8, 8), START_MASK_PROBABILITY))
    assert (wide.config["in_channels"], wide.config["out_channels"]) == (2 * CHANNELS, CHANNELS + 1)
    assert old.config["in_channels"] == CHANNELS


def test_a_unet_is_not_widened_twice():
    with pytest.raises(InputError, match="only a text-to-image UNet"):
        widen_unet(widen_unet(tiny_unet()))


def test_a_published_edit_unet_gets_a_mask_output_and_keeps_its_prediction():
    stock = tiny_unet(inputs=2 * CHANNELS)
    with_mask = add_mask_output(stock)
    inputs, text, t = draw(1, 2 * CHANNELS, 8, 8), draw(1, 5, WIDTH), torch.tensor([10])
    with torch.no_grad():
        expected = stock(inputs, t, encoder_hidden_states=text).sample
        found = with_mask(inputs, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(found[:, :CHANNELS], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="twice as many inputs"):
        add_mask_output(with_mask)


def test_guidance_is_the_formula_of_three_evaluations(model: EditModel):
    latents, original, t = draw(2, CHANNELS, 8, 8), draw(2, CHANNELS, 8, 8, seed=1), torch.tensor([500, 500])
    text, no_text = draw(2, 5, WIDTH, seed=2), draw(2, 5, WIDTH, seed=3)
    condition, nothing = EditCondition(original, text, no_text), torch.zeros_like(original)
    with torch.no_grad():
        full = model.predict(latents, t, original, text)
        without_text = model.predict(latents, t, original, no_text).epsilon
        neither = model.predict(latents, t, nothing, no_text).epsilon
        for text_guidance, image_guidance in ((7.5, 1.5), (3.0, 1.0), (1.0, 1.0)):
            guidance = Guidance(text=text_guidance, image=image_guidance)
            found = model.predict_guided(latents, t, condition, guidance)
            expected = (
                neither + text_guidance * (full.epsilon - without_text) + image_guidance * (without_text - neither)
            )
            torch.testing.assert_close(found.epsilon, expected, rtol=1e-4, atol=1e-4)
            assert full.mask_logits is not None and found.mask is not None
            torch.testing.assert_close(found.mask, full.mask_logits.sigmoid())


@pytest.mark.parametrize(("image_guidance", "highest_noise", "rows"), [(1.5, 1.0, 2), (1.0, 1.0, 1), (1.5, 0.1, 1)])
def test_what_is_told_nothing_is_predicted_with_one_row_fewer(model: EditModel, image_guidance, highest_noise, rows):
    latents, t = draw(1, CHANNELS, 8, 8), torch.tensor([400])
    condition = EditCondition(draw(1, CHANNELS, 8, 8, seed=1), draw(1, 5, WIDTH, seed=3), draw(1, 5, WIDTH, seed=3))
    untold = condition._replace(text=condition.no_text)
    guidance, batches = Guidance(text=3.0, image=image_guidance, highest_noise=highest_noise), []
    hook = model.unet.register_forward_pre_hook(lambda unet, inputs: batches.append(len(inputs[0])))
    with torch.no_grad():
        expected, found = (model.predict_guided(latents, t, each, guidance) for each in (condition, untold))
    hook.remove()
    assert batches[1] == rows
    torch.testing.assert_close(found.epsilon, expected.epsilon, rtol=1e-4, atol=1e-5)
    assert found.mask is not None and expected.mask is not None
    torch.testing.assert_close(found.mask, expected.mask)


def test_outside_its_interval_guidance_is_the_plain_prediction(model: EditModel):
    latents, t = draw(1, CHANNELS, 8, 8), torch.tensor([900])
    condition = EditCondition(draw(1, CHANNELS, 8, 8, seed=1), draw(1, 5, WIDTH), draw(1, 5, WIDTH, seed=3))
    with torch.no_grad():
        plain = model.predict(latents, t, condition.original_latents, condition.text).epsilon
        outside = model.predict_guided(latents, t, condition, Guidance(highest_noise=0.8)).epsilon
        inside = model.predict_guided(latents, t, condition, Guidance(highest_noise=0.95)).epsilon
    torch.testing.assert_close(outside, plain)
    assert not torch.allclose(inside, plain, atol=1e-3)


@pytest.mark.parametrize("noise_level", [0.5, 1.0])
def test_a_picture_depends_on_its_own_seed_and_not_on_its_batch(model: EditModel, pictures, noise_level):
    def edit(rows: list[int], batch_size: int):
        settings = dataclasses.replace(FAST, batch_size=batch_size)
        picked = pictures[rows]
        seeds = [100 + row for row in rows]
        return edit_images(model, picked, picked, "a cat", noise_level=noise_level, seeds=seeds, settings=settings)

    whole, single, backwards = edit([0, 1, 2], 16), edit([1], 16), edit([2, 1, 0], 2)
    assert whole.images.shape == (3, 3, 64, 64) and whole.masks.shape == (3, 64, 64)
    assert float(whole.masks.min()) >= 0 and float(whole.masks.max()) <= 1
    torch.testing.assert_close(single.images[0], whole.images[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(backwards.images[1], whole.images[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(backwards.masks[0], whole.masks[2], rtol=0, atol=1e-4)


def test_views_are_forgotten_at_full_noise_and_only_there(model: EditModel, pictures):
    def edit(views: torch.Tensor, noise_level: float) -> torch.Tensor:
        return edit_images(
            model, views, pictures[:1], "a cat", noise_level=noise_level, seeds=[1], settings=FAST
        ).images

    torch.testing.assert_close(edit(pictures[1:2], 1.0), edit(pictures[2:3], 1.0), rtol=0, atol=0)
    assert not torch.allclose(edit(pictures[1:2], 0.3), edit(pictures[2:3], 0.3), atol=1e-3)


def test_less_noise_takes_fewer_steps(model: EditModel, pictures, monkeypatch):
    calls = []
    predict_guided = EditModel.predict_guided
    monkeypatch.setattr(EditModel, "predict_guided", lambda self, *args: calls.append(1) or predict_guided(self, *args))
    settings = dataclasses.replace(FAST, steps=10)
    for noise_level, expected in ((1.0, 10), (0.5, 5), (0.32, 4), (0.02, 1)):
        calls.clear()
        edit_images(model, pictures[:1], pictures[:1], "a", noise_level=noise_level, seeds=[0], settings=settings)
        assert len(calls) == expected


@pytest.mark.parametrize("keep_outside", [False, True])
def test_views_need_not_be_multiples_of_the_latents_size(model: EditModel, pictures, keep_outside):
    views = pictures[:2, :, :13, :19]
    settings = EditSettings(steps=2, keep_outside=keep_outside)
    edited = edit_images(model, views, views, "blue", noise_level=0.5, seeds=[1, 2], settings=settings)
    assert edited.images.shape == views.shape and edited.masks.shape == (2, 13, 19)
    latents = model.backbone.encode_images(views)
    whole = torch.nn.functional.pad(views, (0, 5, 0, 3), mode="replicate")
    torch.testing.assert_close(latents, model.backbone.encode_images(whole))


def test_keep_outside_leaves_every_pixel_where_the_mask_is_empty(model: EditModel, pictures):
    unet = widen_unet(model.backbone.unet)  # its mask is 0.05 everywhere
    blank = dataclasses.replace(model, unet=unet)
    settings = dataclasses.replace(FAST, keep_outside=True)
    kept = edit_images(blank, pictures, pictures, "a cat", noise_level=1.0, seeds=[0, 1, 2], settings=settings)
    torch.testing.assert_close(kept.images, pictures, rtol=0, atol=1e-6)
    free = edit_images(blank, pictures, pictures, "a cat", noise_level=1.0, seeds=[0, 1, 2], settings=FAST)
    assert not torch.allclose(free.images, pictures, atol=0.05)


def test_a_unet_without_mask_output_tells_the_mask_from_its_guidance(backbone: Backbone, pictures):
    stock = EditModel(backbone, tiny_unet(inputs=2 * CHANNELS), condition_scale=0.5)
    edited = edit_images(stock, pictures, pictures, "a cat", noise_level=0.8, seeds=[0, 1, 2], settings=FAST)
    assert not stock.has_mask_output
    assert float(edited.masks.min()) >= 0 and float(edited.masks.amax()) <= 1
    assert bool((edited.masks.amax(dim=(1, 2)) > 0.7).all())
    plain = dataclasses.replace(FAST, guidance=Guidance(text=1.0, image=1.0))
    with pytest.raises(InputError, match="text guidance"):
        edit_images(stock, pictures, pictures, "a cat", noise_level=0.8, seeds=[0, 1, 2], settings=plain)


@pytest.mark.parametrize("stands_alone", [True, False])
def test_a_saved_model_comes_back(model: EditModel, pictures, tmp_path: Path, stands_alone: bool):
    shared = tmp_path / "text_to_image"
    save_backbone(model.backbone, shared)
    folder = tmp_path / "edit"
    save_edit_model(model, folder, None if stands_alone else shared)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    folder = folder.rename(moved / "edit")
    if not stands_alone:
        assert not (folder / "vae").exists()
        shared.rename(moved / "text_to_image")
    loaded = load_edit_model(folder)
    expected = edit_images(model, pictures, pictures, "a cat", noise_level=0.9, seeds=[1, 2, 3], settings=FAST)
    found = edit_images(loaded, pictures, pictures, "a cat", noise_level=0.9, seeds=[1, 2, 3], settings=FAST)
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=0.05)  # half precision on disk
    torch.testing.assert_close(found.masks, expected.masks, rtol=0, atol=0.02)
    assert loaded.unet.dtype == torch.float32


def test_edit_models_are_told_apart_by_unet_and_text_encoder(model: EditModel, tmp_path: Path):
    shared = tmp_path / "text_to_image"
    save_backbone(model.backbone, shared)
    trained = dataclasses.replace(model, has_own_text_encoder=True)
    for name, saved in (("one", model), ("same", model), ("own", trained)):
        save_edit_model(saved, tmp_path / name, shared)
    one, same, own = (edit_weights_sha256(tmp_path / name) for name in ("one", "same", "own"))
    assert one == same != own
    assert load_edit_model(tmp_path / "own").has_own_text_encoder
    with pytest.raises(InputError, match="holds no edit model"):
        edit_weights_sha256(tmp_path)


def test_a_whole_published_folder_loads_with_its_own_scale_of_the_original(backbone: Backbone, tmp_path: Path):
    save_backbone(dataclasses.replace(backbone, unet=tiny_unet(inputs=2 * CHANNELS)), tmp_path)
    loaded = load_edit_model(tmp_path)
    assert loaded.condition_scale == pytest.approx(1 / backbone.vae.config["scaling_factor"])
    assert not loaded.has_mask_output


def test_a_model_of_the_wrong_shape_is_refused_in_one_line(backbone: Backbone, tmp_path: Path):
    for unet, message in (
        (tiny_unet(), "widen a text-to-image UNet first"),
        (tiny_unet(inputs=2 * CHANNELS, outputs=CHANNELS + 2), "6"),
        (tiny_unet(inputs=2 * CHANNELS, width=16), "text of width 16"),
    ):
        with pytest.raises(InputError, match=message) as error:
            EditModel(backbone, unet)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="holds no edit model"):
        load_edit_model(tmp_path / "missing")
    save_edit_model(EditModel(backbone, widen_unet(backbone.unet)), tmp_path, tmp_path / "nowhere")
    (tmp_path / "edit_model.json").write_text(json.dumps({"text_to_image": "gone"}))
    with pytest.raises(InputError):
        load_edit_model(tmp_path)


def test_views_originals_and_seeds_must_fit(model: EditModel, pictures):
    with pytest.raises(InputError, match="as many originals"):
        edit_images(model, pictures, pictures, "a cat", noise_level=1.0, seeds=[0], settings=FAST)
    with pytest.raises(InputError, match="noise level"):
        edit_images(model, pictures, pictures, "a cat", noise_level=0.0, seeds=[0, 1, 2], settings=FAST)
