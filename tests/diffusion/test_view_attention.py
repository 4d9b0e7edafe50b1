from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from restage.diffusion.backbone import save_half
from restage.diffusion.view_attention import ViewAttention, build_view_attention, load_view_attention, viewing
from restage.records import InputError
from tests.diffusion.tiny import tiny_unet

VIEWS = 3


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def trained(unet) -> ViewAttention:
    """An add-on that has left the start, where it changes nothing."""
    add_on = build_view_attention(unet, num_views=VIEWS)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in add_on.named_parameters():
        if "to_out" in name or "ray_out" in name or "place" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return add_on.eval().requires_grad_(False)


def inputs(scenes: int = 1, variants: int = 1):
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(scenes * VIEWS, 4, 16, 16, generator=generator).repeat(variants, 1, 1, 1)
    text = torch.randn(variants, 5, 32, generator=generator).repeat_interleave(scenes * VIEWS, dim=0)
    rays = torch.randn(scenes, VIEWS, 6, 16, 16, generator=generator)
    return latents, text, rays


@torch.no_grad()
def call(unet, latents, text):
    return unet(latents, 300, encoder_hidden_states=text).sample


def test_a_new_add_on_changes_nothing(unet) -> None:
    latents, text, rays = inputs(variants=2)
    before = call(unet, latents, text)
    with viewing(unet, build_view_attention(unet, num_views=VIEWS), rays):
        assert torch.equal(call(unet, latents, text), before)
    assert torch.equal(call(unet, latents, text), before)


def test_views_hear_of_each_other_and_of_no_other_scene_or_variant(unet, trained) -> None:
    latents, text, rays = inputs(scenes=2, variants=2)
    before = call(unet, latents, text)
    with viewing(unet, trained, rays):
        found = call(unet, latents, text)
        changed = latents.clone()
        changed[1] += 0.5  # the second view of the first scene, in the first variant
        again = call(unet, changed, text)
    assert not torch.allclose(found, before, atol=1e-3)
    moved = (again - found).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert moved.tolist() == [True] * VIEWS + [False] * (len(latents) - VIEWS)
    # A scene alone gives what it gives beside another.
    with viewing(unet, trained, rays[:1]):
        alone = call(unet, latents[:VIEWS], text[:VIEWS])
    torch.testing.assert_close(alone, found[:VIEWS], atol=1e-4, rtol=1e-4)
    assert torch.equal(call(unet, latents, text), before)


def test_it_heeds_the_cameras_and_no_order_of_views(unet, trained) -> None:
    latents, text, rays = inputs()
    with viewing(unet, trained, rays):
        found = call(unet, latents, text)
    order = [2, 0, 1]
    with viewing(unet, trained, rays[:, order]):
        torch.testing.assert_close(call(unet, latents[order], text[order]), found[order], atol=1e-4, rtol=1e-4)
    with viewing(unet, trained, rays.flip(1)):
        assert not torch.allclose(call(unet, latents, text), found, atol=1e-3)


def test_it_is_saved_as_a_folder_and_loaded_for_the_unet_it_belongs_to(unet, trained, tmp_path: Path) -> None:
    save_half(trained, tmp_path / "views")
    loaded = load_view_attention(tmp_path / "views", unet)
    assert loaded.num_views == VIEWS
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    with pytest.raises(InputError, match="UNet of other widths"):
        save_half(ViewAttention(widths=[32], heads=[8], first_width=32), tmp_path / "other")
        load_view_attention(tmp_path / "other", unet)


def test_large_layers_attend_to_means_of_four_tokens() -> None:
    layer: Any = build_view_attention(tiny_unet(), num_views=2).layers[0]
    layer.to_out.weight.data = torch.eye(len(layer.to_out.weight))
    tokens, places = torch.randn(2, 256, len(layer.to_out.weight)), torch.zeros(1, 2, 256, 42)
    squares = tokens.unflatten(1, (8, 2, 8, 2))
    # Where four tokens are alike, their mean is each of them, and attention to it is attention to all.
    alike = squares.mean(dim=(2, 4), keepdim=True).expand_as(squares).flatten(3, 4).flatten(1, 3)
    query, key, value = (
        each(alike.flatten(0, 1)[None]).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for each in (layer.to_q, layer.to_k, layer.to_v)
    )
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(alike, places).flatten(0, 1), whole[0], atol=1e-4, rtol=1e-4)
    counts: list[int] = []
    for each in (layer.to_k, layer.to_v):
        each.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].shape[1]))
    layer(tokens, places)
    assert counts == [128, 128]  # of two views


def test_hooks_are_gone_after_an_error(unet, trained) -> None:
    latents, text, rays = inputs()
    before = call(unet, latents, text)
    with pytest.raises(ZeroDivisionError), viewing(unet, trained, rays):
        raise ZeroDivisionError
    assert torch.equal(call(unet, latents, text), before)


def test_a_unet_that_is_not_called_is_noticed(unet, trained) -> None:
    with pytest.raises(RuntimeError, match="only some"), viewing(unet, trained, inputs()[2]):
        unet.conv_in(torch.zeros(VIEWS, 4, 16, 16))
