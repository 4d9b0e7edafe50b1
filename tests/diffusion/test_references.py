"""How an edit model looks at a reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.diffusion.backbone import save_backbone
from restage.diffusion.edit_models import edit_weights_sha256, load_edit_model, save_edit_model, widen_unet
from restage.diffusion.editor import EditModel, EditSettings, Guidance, edit_images
from restage.diffusion.references import Beside, Mutual, PictureTokens, Words, prepare_reference
from restage.records import InputError
from tests.diffusion.test_editor import draw
from tests.train.tiny import CHANNELS, WIDTH, tiny_backbone

FAST = EditSettings(steps=2, guidance=Guidance(text=2.0, image=1.5), use_bfloat16=False)


def square(
    color: tuple[float, float, float], *, left: int = 10, ground: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture with a colored square, and its mask."""
    mask = torch.zeros(48, 64)
    mask[20:30, left : left + 12] = 1
    return torch.lerp(torch.full((3, 48, 64), ground), torch.tensor(color)[:, None, None].expand(3, 48, 64), mask), mask


def reference(*color: float) -> torch.Tensor:
    return prepare_reference(*square(color), 64)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def model() -> EditModel:
    backbone = tiny_backbone()
    unet = widen_unet(backbone.unet)
    with torch.no_grad():
        unet.conv_in.weight[:, CHANNELS:] = 0.1 * draw(8, CHANNELS, 3, 3)
        unet.conv_out.weight[CHANNELS] = 0.1 * draw(8, 3, 3, seed=1)
        for name, parameter in unet.named_parameters():
            if ".to_q." in name or ".to_k." in name:
                parameter.copy_(0.3 * draw(*parameter.shape, seed=2))
    return EditModel(backbone, unet)


def with_arm(model: EditModel, arm: str) -> EditModel:
    if arm == "tokens":
        tokens = PictureTokens(model.unet, CHANNELS, WIDTH)
        torch.nn.init.constant_(tokens.picture_weights, 0.7)
        return dataclasses.replace(model, reader=tokens.requires_grad_(False))
    readers = {"beside": Beside(), "mutual": Mutual(model.schedule, model.backbone.encode_text([""])), "words": Words()}
    return dataclasses.replace(model, reader=readers[arm])


def edit(model: EditModel, shown: torch.Tensor | None, count: int = 2) -> torch.Tensor:
    views = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    how = {"noise_level": 1.0, "seeds": list(range(count)), "settings": FAST, "reference": shown}
    return edit_images(model, views, views, "make it so", **how).images


@pytest.mark.parametrize("arm", ["beside", "tokens", "mutual"])
def test_an_edit_depends_on_its_reference_and_not_on_its_batch(model: EditModel, arm: str) -> None:
    looking = with_arm(model, arm)
    red, blue = (edit(looking, reference(*color)) for color in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9)))
    assert float((red - blue).abs().max()) > 1e-4
    alone = edit(looking, reference(0.9, 0.1, 0.1), count=1)
    torch.testing.assert_close(alone[0], red[0], rtol=0, atol=2e-4)


def test_words_alone_look_at_nothing(model: EditModel) -> None:
    words = with_arm(model, "words")
    assert torch.equal(edit(words, reference(0.9, 0.1, 0.1)), edit(words, None))
    assert not words.takes_references and with_arm(model, "beside").takes_references


def test_picture_tokens_begin_as_the_model_of_words(model: EditModel) -> None:
    fresh = dataclasses.replace(model, reader=PictureTokens(model.unet, CHANNELS, WIDTH).requires_grad_(False))
    plain = edit(model, None)
    torch.testing.assert_close(edit(fresh, None), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(edit(fresh, reference(0.9, 0.1, 0.1)), plain, rtol=0, atol=1e-4)
    assert all(type(layer).__name__ == "AttnProcessor2_0" for layer in model.unet.attn_processors.values())


def test_rows_without_a_reference_get_nothing_from_those_of_others(model: EditModel) -> None:
    shown = with_arm(model, "tokens").encode_reference(reference(0.9, 0.1, 0.1)[None])
    for arm in ("beside", "tokens", "mutual"):
        looking = with_arm(model, arm)
        inputs = (draw(2, CHANNELS, 8, 8), torch.tensor([300, 300]), draw(2, CHANNELS, 8, 8, seed=1))
        text = looking.backbone.encode_text(["make it so"] * 2)
        with torch.no_grad():
            mixed = looking.predict(*inputs, text, torch.cat([shown, torch.zeros_like(shown)])).epsilon
            without = looking.predict(*inputs, text, None).epsilon
        torch.testing.assert_close(mixed[1], without[1], rtol=1e-4, atol=1e-4)
        assert float((mixed[0] - without[0]).abs().max()) > 1e-4


def test_guidance_takes_the_reference_away_with_the_text(model: EditModel) -> None:
    looking = with_arm(model, "beside")
    originals = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    condition = looking.encode_condition(originals, ["make it so"], reference(0.9, 0.1, 0.1))
    latents, t = draw(1, CHANNELS, 8, 8), torch.tensor([500])
    with torch.no_grad():
        full = looking.predict(latents, t, condition.original_latents, condition.text, condition.reference).epsilon
        untold = looking.predict(latents, t, condition.original_latents, condition.no_text).epsilon
        guided = looking.predict_guided(latents, t, condition, Guidance(text=3.0, image=1.0)).epsilon
    torch.testing.assert_close(guided, untold + 3.0 * (full - untold), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arm", ["words", "beside", "tokens"])
def test_a_folder_says_how_its_model_looks_at_references(model: EditModel, arm: str, tmp_path: Path) -> None:
    save_backbone(model.backbone, tmp_path / "text_to_image")
    looking = with_arm(model, arm)
    for shared in (tmp_path / "text_to_image", None):
        folder = tmp_path / f"edit_model_{shared is None}"
        save_edit_model(looking, folder, shared)
        loaded = load_edit_model(folder)
        assert loaded.reader.name == arm
        shown = reference(0.9, 0.1, 0.1)
        # Folders hold half precision.
        assert float((edit(loaded, shown) - edit(looking, shown)).abs().mean()) < 0.004
    assert ("references" in (folder / "edit_model.json").read_text()) == (arm != "words")
    if arm == "tokens":
        before = edit_weights_sha256(folder)
        assert isinstance(loaded.reader, PictureTokens)
        loaded.reader.picture_weights.data += 1
        save_edit_model(loaded, folder)
        assert edit_weights_sha256(folder) != before
        (folder / "picture_tokens.safetensors").write_bytes(b"nothing")
        with pytest.raises(InputError, match="picture_tokens.safetensors cannot be loaded"):
            load_edit_model(folder)


def test_a_cut_out_subject_keeps_nothing_of_its_ground_and_place() -> None:
    color = (0.8, 0.3, 0.1)
    cut = prepare_reference(*square(color), 32)
    elsewhere = prepare_reference(*square(color, left=40, ground=0.9), 32)
    torch.testing.assert_close(cut, elsewhere)
    inside = cut[3] > 0.99
    torch.testing.assert_close(cut[:3, inside].mean(dim=1), torch.tensor(color), rtol=0, atol=1e-3)
    assert torch.allclose(cut[:3, cut[3] < 0.01], torch.tensor(0.5), atol=0.01) and 0.3 < float(cut[3].mean()) < 0.9
    picture, _ = square(color)
    whole = prepare_reference(picture, None, 64)
    assert torch.allclose(whole[3, 8:56], torch.tensor(1.0)) and float(whole[3, :7].max()) == 0
    with pytest.raises(InputError, match="the mask of the reference marks nothing"):
        prepare_reference(picture, torch.zeros(48, 64), 32)


def test_a_long_strip_is_looked_at_within_little_memory(monkeypatch):
    picture = torch.rand(3, 2, 12000)
    found = prepare_reference(picture, torch.ones(2, 12000), 32)
    assert found.shape == (4, 32, 32) and bool((found[3] > 0).any())
    monkeypatch.setattr("restage.diffusion.references.MAX_EDGE", 64)
    large = torch.full((3, 100, 200), 0.25)
    torch.testing.assert_close(prepare_reference(large, None, 32)[:3, 12:20], torch.full((3, 8, 32), 0.25))
