import dataclasses

import pytest
import torch

from restage.diffusion.config import MASACTRL, ControlOptions, LocalBlend
from restage.diffusion.control import INJECT, MUTUAL, NO_SELF
from restage.diffusion.control_options import _self, build_control
from restage.records import InputError, content_id, to_plain
from tests.diffusion.tiny import tiny_tokenizer

SOURCE, TARGET, SWAPS = "a red ball on sand", "a blue ball on sand", (("red", "blue"),)


SWAPPED = {
    "held": {},
    "freed": {"swapped_window": (0.0, 0.2)},
    "word": {"swapped_window": (0.0, 0.2), "word_windows": {"blue": (0.0, 1.0)}},
}


def build(source=SOURCE, target=TARGET, swaps=SWAPS, **options):
    texts = {name: options.pop(name) for name in ("words", "kept_words") if name in options}
    return build_control(tiny_tokenizer(), source, target, swaps=swaps, **texts, options=ControlOptions(**options))


def test_swaps_replace_and_everything_else_refines():
    assert build()[0] == "replace"
    assert build(target="a blue ball on sand at night")[0] == "refine"
    assert build(swaps=())[0] == "refine"


@pytest.mark.parametrize(
    ("window", "on"),
    [((0.0, 0.8), range(8)), ((0.25, 0.45), range(2, 4)), ((0.0, 1.0), range(10)), ((0.5, 0.5), range(0))],
)
def test_windows_are_shares_of_the_steps_rounded_down(window, on):
    _, control = build(cross_window=window, self_window=window)
    steps = [control.at_step(step, 10) for step in range(10)]
    assert [i for i, step in enumerate(steps) if step.is_cross_on] == list(on)
    assert [i for i, step in enumerate(steps) if step.is_inject_on] == list(on)
    assert all((step.largest_size > 0) == step.is_inject_on for step in steps)


def test_words_have_windows_and_strengths_of_their_own():
    _, control = build(word_windows={"blue": (0.5, 0.6)}, word_strengths={"sand": 2.0})
    early, late = control.at_step(0, 10), control.at_step(5, 10)
    changed = (early.source_gain != late.source_gain)[0].nonzero().flatten().tolist()
    assert changed and all(float(early.own_gain[0, i]) == 1 and float(late.own_gain[0, i]) == 0 for i in changed)
    assert float(early.source_gain.max()) == 2


def test_swapped_words_have_a_window_of_their_own():
    at = {name: build(cross_window=(0.0, 1.0), **options)[1].at_step(5, 10) for name, options in SWAPPED.items()}
    freed = (at["held"].source_gain != at["freed"].source_gain)[0].nonzero().flatten().tolist()
    assert freed and all(float(at["freed"].own_gain[0, i]) == 1 for i in freed)
    assert torch.equal(at["word"].source_gain, at["held"].source_gain)  # what is said of a word comes first
    refined = [build(target="a blue ball on sand at night", **options)[1] for options in (SWAPPED["freed"], {})]
    first, second = (control.at_step(0, 10).own_gain for control in refined)
    assert torch.equal(first, second)


def test_controlled_tokens_keep_the_sum_of_attention():
    _, control = build(target="a big blue ball on sand", swaps=())
    now = control.at_step(0, 10)
    torch.testing.assert_close(now.source_gain + now.own_gain, torch.ones_like(now.own_gain))


def test_kinds_of_self_attention():
    kinds = {name: int(build(self_attention=name)[1].self_attention.kind[0]) for name in ("none", "inject", "mutual")}
    assert kinds == {"none": NO_SELF, "inject": INJECT, "mutual": MUTUAL}
    _, masactrl = build_control(tiny_tokenizer(), SOURCE, TARGET, options=MASACTRL)
    assert [masactrl.at_step(step, 50, num_layers=16).is_mutual_on for step in (3, 4)] == [False, True]
    assert masactrl.at_step(4, 50, num_layers=16).earliest_layer == 10
    with pytest.raises(InputError, match="num_layers"):
        masactrl.at_step(4, 50)


def test_control_begins_at_the_layer_whose_share_was_asked_for():
    _, control = build(self_window=(0.0, 1.0))
    for count in range(1, 71):
        numbers = range(count + 1)
        pairs = control.select(torch.zeros(count + 1, dtype=torch.long))
        shares = torch.cat([_self(ControlOptions(self_first_layer=n / count)).first_layer for n in numbers])
        pairs = dataclasses.replace(pairs, self_attention=dataclasses.replace(pairs.self_attention, first_layer=shares))
        step = pairs.at_step(0, 10, num_layers=count)
        gates = [step.gates.is_open(INJECT, num_halves=1, size_squared=64, layer=n)[0] for n in range(count)]
        assert [gate.tolist() for gate in gates] == [[first <= n for first in numbers] for n in range(count)]
        assert pairs.select(torch.tensor([count])).at_step(0, 10, num_layers=count).earliest_layer == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_window": (0.8, 0.2)}, "cross_window"),
        ({"swapped_window": (0.8, 0.2)}, "swapped_window"),
        ({"self_window": (0.0, 1.2)}, "self_window"),
        ({"word_windows": {"blue": (0.5, 0.1)}}, "word_windows"),
        ({"word_windows": {"castle": (0.0, 1.0)}}, "castle"),
        ({"word_strengths": {"red": 2.0}}, "red"),  # stands in the source only
        ({"word_strengths": {"blue": 2.0}, "cross_window": (0.0, 0.0)}, "no effect"),
        ({"self_max_size": 0}, "self_max_size"),
        ({"region_threshold": 1.0}, "region_threshold"),
        ({"words": ("castle",)}, "castle"),
        ({"kept_words": ("castle",)}, "castle"),
        ({"source": "a red ball " * 20}, "tokens"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"kept_threshold": 1.0}, {"start": 1.5}])
def test_bad_settings_of_local_blend_are_refused(settings):
    with pytest.raises(InputError):
        LocalBlend(**settings)


def test_padding_is_own_unless_public_is_asked_for_and_then_part_of_ids():
    longer = {"target": "a big blue ball on sand"}
    default, own, public = (
        build(**longer, **options)[1].cross.word_map for options in ({}, {"padding": "own"}, {"padding": "public"})
    )
    assert torch.equal(default, own) and not torch.equal(own, public)
    assert "padding" not in to_plain(ControlOptions())
    assert to_plain(ControlOptions(padding="public"))["padding"] == "public"
    assert content_id("control", ControlOptions()) == "control-2cd7dd1366219cdd"
