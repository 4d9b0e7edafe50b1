import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from restage.diffusion.alignment import align_phrases, align_swaps, token_mask
from restage.diffusion.attention import PairControl, WordMaps, controlled, merge_controls
from restage.records import InputError
from tests.diffusion.explicit_attention import ExplicitProcessor, explicitly_controlled
from tests.diffusion.tiny import tiny_tokenizer, tiny_unet

PAIRS = [
    ("a red ball on sand", "a blue zebra on sand", [("red", "blue"), ("ball", "zebra")], ["ball", "zebra"]),
    ("a cube on the grass", "a big cube on the grass at night", [], ["cube"]),
    ("a red cone at noon", "an orange cone at noon", [("red", "orange")], []),
]


def make_control(index, cross=0.8, own=0.5, **settings):
    tokenizer = tiny_tokenizer()
    source, target, swaps, words = PAIRS[index]
    aligned = align_swaps(tokenizer, source, target, swaps) if swaps else align_phrases(tokenizer, source, target)
    return PairControl(
        word_map=aligned.word_map[None],
        cross_until=cross * aligned.gate[None],
        self_until=torch.tensor([own]),
        source_words=token_mask(tokenizer, source, words)[None],
        edit_words=token_mask(tokenizer, target, words)[None],
        **settings,
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(unet, latents, text, control, t=500):
    with torch.no_grad(), controlled(unet, control):
        return unet(latents, torch.full((len(latents),), t), encoder_hidden_states=text).sample


@pytest.fixture(scope="module")
def unet():
    return tiny_unet().double()


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("index", range(len(PAIRS)))
@pytest.mark.parametrize("has_guidance", [True, False])
@pytest.mark.parametrize("settings", [{}, {"self_max_size": 8, "self_unconditional": False}])
def test_each_layer_equals_explicit_probabilities(share, index, has_guidance, settings):
    pair = make_control(index, **settings)
    rows = 4 if has_guidance else 2
    for is_cross in (False, True):
        layer = Attention(32, cross_attention_dim=32 if is_cross else None, heads=4, dim_head=8).double()
        for size in (8, 16):
            hidden = draw(rows, size**2, 32)
            text = draw(rows, 24, 32, seed=1) if is_cross else None
            mask = 2 * draw(rows, 1, 24, seed=2) if is_cross else None
            stored, maps = [], WordMaps((16,))
            layer.processor = ExplicitProcessor(pair, share, stored)  # pyright: ignore[reportAttributeAccessIssue]
            expected = layer(hidden, encoder_hidden_states=text, attention_mask=mask)
            with controlled_layer(layer, pair.at_step(round(share * 10), 10, maps)):
                found = layer(hidden, encoder_hidden_states=text, attention_mask=mask)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
            if is_cross and size == 16:
                torch.testing.assert_close(maps.mean().flatten(1), stored[0].float(), rtol=0, atol=1e-6)


def controlled_layer(layer, control):
    """`controlled` wants as many self as cross layers: give it one of each, and use both."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            other = Attention(32, cross_attention_dim=None if layer.is_cross_attention else 32, heads=4, dim_head=8)
            self.layers = nn.ModuleList([layer, other.double()])

    both = Both()
    context = controlled(both, control)

    class Used:
        def __enter__(self):
            context.__enter__()
            hidden, text = draw(2 * len(control.pairs), 4, 32), draw(2 * len(control.pairs), 24, 32)
            both.layers[1](hidden, encoder_hidden_states=None if layer.is_cross_attention else text)

        def __exit__(self, *error):
            return context.__exit__(*error)

    return Used()


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_unet_output_equals_explicit_probabilities(unet, index):
    pair, latents, text = make_control(index), draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    maps, stored = WordMaps((16,)), []
    found = run(unet, latents, text, pair.at_step(0, 10, maps))
    with torch.no_grad(), explicitly_controlled(unet, pair, 0.0, stored):
        expected = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(maps.mean().flatten(1), torch.stack(stored).mean(0).float(), rtol=0, atol=1e-6)


def test_mixed_batch_equals_its_members_alone(unet):
    members = [make_control(i, cross=0.3 * (i + 1), own=0.4 * i) for i in range(3)]
    latents, text = draw(2, 2, 3, 4, 16, 16), draw(2, 2, 3, 24, 32, seed=1)
    maps = WordMaps((16, 8))
    together = run(unet, latents.flatten(0, 2), text.flatten(0, 2), merge_controls(members).at_step(5, 10, maps))
    for i, member in enumerate(members):
        own = WordMaps((16, 8))
        alone = run(unet, latents[:, :, i].flatten(0, 1), text[:, :, i].flatten(0, 1), member.at_step(5, 10, own))
        torch.testing.assert_close(together.unflatten(0, (2, 2, 3))[:, :, i].flatten(0, 1), alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(maps.mean().unflatten(0, (2, 3))[:, i], own.mean(), rtol=0, atol=1e-6)


def test_control_that_is_off_changes_nothing(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    off = run(unet, latents, text, make_control(0).at_step(9, 10))
    torch.testing.assert_close(off, plain, rtol=0, atol=1e-10)


def test_source_branch_is_never_changed_and_the_edit_branch_is(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    under = run(unet, latents, text, make_control(0).at_step(0, 10))
    torch.testing.assert_close(under[[0, 2]], plain[[0, 2]], rtol=0, atol=1e-10)
    assert (under[3] - plain[3]).abs().mean() > 1e-3
    only_cross = run(unet, latents, text, make_control(0, own=0.0).at_step(0, 10))
    torch.testing.assert_close(only_cross[1], plain[1], rtol=0, atol=1e-10)  # the unconditional half


def test_control_between_equal_branches_changes_nothing(unet):
    latents, text = draw(1, 4, 16, 16).expand(4, -1, -1, -1), draw(1, 24, 32).expand(4, -1, -1)
    pair = make_control(0)
    same = dataclasses.replace(pair, word_map=torch.eye(24)[None], cross_until=torch.ones(1, 24))
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    torch.testing.assert_close(run(unet, latents, text, same.at_step(0, 10)), plain, rtol=0, atol=1e-10)


def test_processors_are_restored_after_an_error(unet):
    before = dict(unet.attn_processors)
    with pytest.raises(KeyError), controlled(unet, make_control(0).at_step(0, 10)):
        assert all(unet.attn_processors[name] is not before[name] for name in before)
        raise KeyError
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_layers_that_control_did_not_reach_are_an_error(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32)
    first = next(module for module in unet.modules() if isinstance(module, Attention))
    with pytest.raises(RuntimeError, match="only some"), controlled(unet, make_control(0).at_step(0, 10)):
        first.processor = AttnProcessor2_0()  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            unet(latents, 500, encoder_hidden_states=text)


def test_models_without_the_expected_layers_are_refused():
    with pytest.raises(InputError, match="found 0"), controlled(nn.Linear(2, 2), make_control(0).at_step(0, 10)):
        pass


def test_wrong_batch_or_text_length_is_refused(unet):
    text = draw(4, 24, 32)
    with pytest.raises(InputError, match="batch"):
        run(unet, draw(3, 4, 16, 16), text[:3], make_control(0).at_step(0, 10))
    with pytest.raises(InputError, match="tokens"):
        run(unet, draw(4, 4, 16, 16), text[:, :20], make_control(0, own=0.0).at_step(0, 10))


def test_maps_of_a_size_that_no_layer_has_are_an_error(unet):
    maps = WordMaps((5,))
    run(unet, draw(4, 4, 16, 16), draw(4, 24, 32), make_control(0).at_step(0, 10, maps))
    with pytest.raises(RuntimeError, match="no cross-attention layer"):
        maps.mean()
