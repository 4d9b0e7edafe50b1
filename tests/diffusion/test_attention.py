import dataclasses
import subprocess
import sys

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from restage.diffusion.attention import controlled, num_self_layers
from restage.diffusion.config import ControlOptions
from restage.diffusion.control import PairControl
from restage.diffusion.word_maps import WordMaps
from restage.records import InputError
from tests.diffusion.cases import CASES, GRASS, Case
from tests.diffusion.explicit import ExplicitProcessor, explicitly_controlled
from tests.diffusion.tiny import tiny_unet

NUM_STEPS = 10


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(unet, latents, text, control, t=500):
    with torch.no_grad(), controlled(unet):
        return unet(
            latents,
            torch.full((len(latents),), t),
            encoder_hidden_states=text,
            cross_attention_kwargs={"control": control},
        ).sample


@pytest.fixture(scope="module")
def unet():
    return tiny_unet().double()


class TwoLayers(nn.Module):
    """One self and one cross layer: what `controlled` wants at least."""

    def __init__(self):
        super().__init__()
        self.own = Attention(32, heads=4, dim_head=8).double()
        self.cross = Attention(32, cross_attention_dim=32, heads=4, dim_head=8).double()

    def forward(self, hidden, text, mask=None, **control):
        return self.own(hidden, **control), self.cross(hidden, text, attention_mask=mask, **control)


@pytest.mark.parametrize("step", [0, 3, 6, 9])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("has_guidance", [True, False])
def test_each_layer_equals_explicit_probabilities(name, step, has_guidance):
    case, layers, rows = CASES[name], TwoLayers(), 4 if has_guidance else 2
    for size in (8, 16):
        maps, controller = WordMaps(16, 1), case.controller(NUM_STEPS)
        hidden, text, mask = draw(rows, size**2, 32), draw(rows, 24, 32, seed=1), 2 * draw(rows, 1, 24, seed=2)
        earlier = draw(2, 4, 256, 24, seed=3).softmax(-1)  # what a layer before has stored, for control by region
        controller.step_store = {("cross", 256): [earlier]}
        words = case.control().blend.words().double()
        controller.step = step
        for layer in (layers.own, layers.cross):
            layer.processor = ExplicitProcessor(controller, 0, 1)  # pyright: ignore[reportAttributeAccessIssue]
        own = layers.own(hidden)
        cross = layers.cross(hidden, text, attention_mask=mask)
        control = case.control().at_step(step, NUM_STEPS, num_layers=1, maps=maps)
        maps.add(torch.einsum("bhpt,bct->bcp", earlier, words) / 4)
        with controlled(layers):
            found = layers(hidden, text, mask, control=control)
        torch.testing.assert_close(found[0], own, rtol=0, atol=1e-10)
        torch.testing.assert_close(found[1], cross, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_unet_output_and_maps_equal_explicit_ones(unet, name):
    case, latents, text = CASES[name], draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    maps, controller = WordMaps(16, 1), case.controller(NUM_STEPS)
    for step in range(2):
        found = run(unet, latents, text, case.control().at_step(step, NUM_STEPS, num_layers=7, maps=maps))
        with torch.no_grad(), explicitly_controlled(unet, controller):
            expected = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
        controller.end_step()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        for branch in (0, 1):
            for column, words in enumerate((case.words, case.kept_words)):
                if words:
                    expected_map = controller.word_map_of(branch, words).float() / (step + 1)
                    torch.testing.assert_close(maps.mean()[branch, column], expected_map, rtol=0, atol=1e-6)


def test_pairs_of_all_kinds_in_one_batch_equal_each_alone(unet):
    members = [case.control() for case in CASES.values()]
    num = len(members)
    latents, text = draw(2, 2, num, 4, 16, 16), draw(2, 2, num, 24, 32, seed=1)
    maps = WordMaps(16, num)
    for step in (1, 4):
        together = run(
            unet,
            latents.flatten(0, 2),
            text.flatten(0, 2),
            PairControl.merge(members).at_step(step, NUM_STEPS, num_layers=7, maps=maps),
        ).unflatten(0, (2, 2, num))
    for i, member in enumerate(members):
        own = WordMaps(16, 1)
        for step in (1, 4):
            alone = run(
                unet,
                latents[:, :, i].flatten(0, 1),
                text[:, :, i].flatten(0, 1),
                member.at_step(step, NUM_STEPS, num_layers=7, maps=own),
            )
        torch.testing.assert_close(together[:, :, i].flatten(0, 1), alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(maps.mean()[[i, num + i]], own.mean(), rtol=0, atol=1e-6)


def test_edits_that_share_a_source_equal_edits_with_a_copy_of_it_each(unet):
    names = ("replace", "MasaCtrl", "InstructPix2Pix")
    control = PairControl.merge([CASES[name].control() for name in names])
    source, edits = draw(2, 1, 4, 16, 16), draw(2, 3, 4, 16, 16, seed=1)
    source_text, edit_text = draw(2, 1, 24, 32, seed=2), draw(2, 3, 24, 32, seed=3)
    shared = run(
        unet,
        torch.cat([source, edits], dim=1).flatten(0, 1),
        torch.cat([source_text, edit_text], dim=1).flatten(0, 1),
        control.at_step(2, NUM_STEPS, num_layers=7, source_of=torch.zeros(3, dtype=torch.long)),
    )
    copies = run(
        unet,
        torch.cat([source.expand(-1, 3, -1, -1, -1), edits], dim=1).flatten(0, 1),
        torch.cat([source_text.expand(-1, 3, -1, -1), edit_text], dim=1).flatten(0, 1),
        control.at_step(2, NUM_STEPS, num_layers=7),
    )
    torch.testing.assert_close(
        shared.unflatten(0, (2, 4))[:, 1:], copies.unflatten(0, (2, 6))[:, 3:], rtol=0, atol=1e-10
    )


def test_control_that_is_off_changes_nothing(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    off = run(unet, latents, text, CASES["nothing"].control().at_step(0, NUM_STEPS))
    torch.testing.assert_close(off, plain, rtol=0, atol=1e-10)


def test_source_branch_is_never_changed_and_the_edit_branch_is(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32, seed=1)
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    under = run(unet, latents, text, CASES["replace"].control().at_step(0, NUM_STEPS))
    torch.testing.assert_close(under[[0, 2]], plain[[0, 2]], rtol=0, atol=1e-10)
    assert (under[3] - plain[3]).abs().mean() > 1e-3
    only_cross = run(unet, latents, text, CASES["no self attention"].control().at_step(0, NUM_STEPS))
    torch.testing.assert_close(only_cross[1], plain[1], rtol=0, atol=1e-10)  # the unconditional half


def test_control_between_equal_branches_changes_nothing(unet):
    latents, text = draw(1, 4, 16, 16).expand(4, -1, -1, -1), draw(1, 24, 32).expand(4, -1, -1)
    control = CASES["replace"].control()
    cross = dataclasses.replace(control.cross, word_map=torch.eye(24)[None])
    same = dataclasses.replace(control, cross=cross)
    with torch.no_grad():
        plain = unet(latents, torch.full((4,), 500), encoder_hidden_states=text).sample
    torch.testing.assert_close(run(unet, latents, text, same.at_step(0, NUM_STEPS)), plain, rtol=0, atol=1e-10)


COMPILED = """
import torch
from restage.diffusion.word_maps import WordMaps
from tests.diffusion.cases import CASES
from tests.diffusion.test_attention import draw, run
from tests.diffusion.tiny import tiny_unet

unet, graphs = tiny_unet(channels=(16,)), []  # compiling takes its time for each layer

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

compiled = torch.compile(unet, backend=backend, fullgraph=True)
latents, text = draw(4, 4, 16, 16).float(), draw(4, 24, 32, seed=1).float()
control, maps, plain_maps = CASES["replace"].control(), WordMaps(16, 1), WordMaps(16, 1)
for step in (0, 1, 2, 9):
    found = run(compiled, latents, text, control.at_step(step, 10, maps=maps))
    expected = run(unet, latents, text, control.at_step(step, 10, maps=plain_maps))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
torch.testing.assert_close(maps.mean(), plain_maps.mean())
print("graphs", len(graphs))
"""


def test_a_compiled_unet_takes_control_unbroken_and_is_not_compiled_anew_for_each_step():
    # In a process of its own, since the checks of annotations that tests run under cannot be compiled.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == 2  # control on, control off


def test_processors_are_restored_after_an_error(unet):
    before = dict(unet.attn_processors)
    with pytest.raises(KeyError), controlled(unet):
        assert all(unet.attn_processors[name] is not before[name] for name in before)
        raise KeyError
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_a_layer_that_was_replaced_is_controlled_like_the_others():
    layers, control = TwoLayers(), CASES["replace"].control().at_step(0, NUM_STEPS)
    hidden, text = draw(2, 64, 32), draw(2, 24, 32, seed=1)
    with controlled(layers):
        before = layers(hidden, text, control=control)
    layers.cross = Attention(32, cross_attention_dim=32, heads=4, dim_head=8).double()
    free = layers(hidden, text)
    with controlled(layers):
        after = layers(hidden, text, control=control)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1][0], free[1][0])  # the source
    assert (after[1][1] - free[1][1]).abs().mean() > 1e-3


class Layers(nn.Module):
    """So many self layers, each with a cross layer, as far as `controlled` looks."""

    def __init__(self, count):
        super().__init__()
        self.own = nn.ModuleList(Attention(8, heads=1, dim_head=8) for _ in range(count))
        self.cross = nn.ModuleList(Attention(8, cross_attention_dim=8, heads=1, dim_head=8) for _ in range(count))

    def forward(self, hidden, text, **control):
        for layer in self.cross:
            layer(hidden, text, **control)
        return [layer(hidden, **control) for layer in self.own]


@pytest.mark.parametrize("kind", ["inject", "mutual"])
def test_self_attention_is_controlled_from_the_layer_on_that_was_asked_for(kind):
    layers, hidden, text = Layers(7), draw(2, 4, 8).float(), draw(2, 24, 8, seed=1).float()
    free = layers(hidden, text)
    for first in range(8):
        options = ControlOptions(self_attention=kind, self_first_layer=first / 7, cross_window=(0.0, 0.0))
        control = Case(*GRASS, options).control().at_step(0, NUM_STEPS, num_layers=num_self_layers(layers))
        with controlled(layers):
            found = layers(hidden, text, control=control)
        is_changed = [not torch.allclose(a[1], b[1], atol=1e-6) for a, b in zip(found, free, strict=True)]
        assert is_changed == [number >= first for number in range(7)]


def test_only_edits_that_keep_attention_of_their_own_cost_more():
    swaps, phrase = CASES["replace"].control(), CASES["refine and reweight"].control()
    control = PairControl.merge([swaps, phrase, CASES["InstructPix2Pix"].control()]).at_step(0, NUM_STEPS)
    assert control.whole.tolist() == [0] and control.mixed.tolist() == [1]


def test_layers_that_control_did_not_reach_are_an_error(unet):
    latents, text = draw(4, 4, 16, 16), draw(4, 24, 32)
    first = next(module for module in unet.modules() if isinstance(module, Attention))
    kwargs = {"control": CASES["replace"].control().at_step(0, NUM_STEPS)}
    with pytest.raises(RuntimeError, match="only some"), controlled(unet):
        first.processor = AttnProcessor2_0()  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            unet(latents, 500, encoder_hidden_states=text, cross_attention_kwargs=kwargs)


def test_models_without_the_expected_layers_are_refused():
    with pytest.raises(InputError, match="found 0"), controlled(nn.Linear(2, 2)):
        pass
    odd = TwoLayers()
    odd.third = Attention(32, heads=4, dim_head=8)
    with pytest.raises(InputError, match="1 cross of 3"), controlled(odd):
        pass


def test_wrong_batch_or_text_length_is_refused(unet):
    text, control = draw(4, 24, 32), CASES["no self attention"].control().at_step(0, NUM_STEPS)
    with pytest.raises(InputError, match="batch"):
        run(unet, draw(3, 4, 16, 16), text[:3], control)
    with pytest.raises(InputError, match="tokens"):
        run(unet, draw(4, 4, 16, 16), text[:, :20], control)


def test_maps_of_a_size_that_no_layer_has_are_an_error(unet):
    maps = WordMaps(5, 1)
    run(unet, draw(4, 4, 16, 16), draw(4, 24, 32), CASES["replace"].control().at_step(0, NUM_STEPS, maps=maps))
    with pytest.raises(RuntimeError, match="no cross-attention layer"):
        maps.mean()
