from __future__ import annotations

import collections
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from restage.diffusion.edit_models import START_MASK_PROBABILITY, widen_unet
from restage.diffusion.schedule import Schedule
from restage.records import InputError
from restage.train.batches import edit_loss, sample_edit_batch
from restage.train.config import ExampleMix, LossWeights, TrainConfig
from restage.train.examples import Examples
from tests.train.tiny import CHANNELS, WIDTH, tiny_unet

PLAIN = ExampleMix(
    drop_text=0.0, drop_image=0.0, drop_both=0.0, mirror_share=0.0, backwards_share=0.0, identity_share=0.0
)
SCHEDULE = Schedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def make_examples(num_pairs: int = 6) -> Examples:
    """Rows that can be told apart: row r has source r + 1, edited -(r + 1); rows num_pairs.. are mirror images.

    Pair n is asked for by text 5 + n; those with odd n are undone by text 105 + n, of which 105 + 1 asks for a state.
    """
    rows = 2 * num_pairs
    value = torch.arange(1.0, rows + 1)[:, None, None, None].expand(rows, CHANNELS, 8, 8)
    number = torch.arange(num_pairs)
    texts = torch.arange(105.0 + num_pairs)[:, None, None].expand(-1, 3, WIDTH)
    text = 5 + torch.cat([number, number])
    undo = torch.where(text % 2 == 0, text + 100, -1)
    return Examples(
        source=value.half(),
        edited=-value.half(),
        masks=torch.ones(rows, 8, 8).half(),
        mirrored=torch.cat([number + num_pairs, number]),
        text=text,
        settled_text=torch.where(text % 2 == 0, text, -1),
        undo_text=undo,
        settled_undo=torch.where(undo == 106, undo, -1),
        texts=texts.half(),
        num_pairs=num_pairs,
        id="examples-0",
    )


def sample(mix: ExampleMix, step: int = 0, batch_size: int = 6, seed: int = 0):
    return sample_edit_batch(make_examples(), mix, batch_size=batch_size, seed=seed, step=step)


def test_every_pair_is_seen_once_an_epoch_whatever_the_batch_size():
    seen = [sample(PLAIN, step, batch_size=4).original[:, 0, 0, 0] for step in range(3)]  # two epochs of six
    values = torch.cat(seen).tolist()
    assert sorted(values[:6]) == sorted(values[6:]) == [1, 2, 3, 4, 5, 6]
    assert values[:6] != values[6:]


def test_a_batch_is_a_function_of_seed_and_step():
    mix = ExampleMix()
    first, again, later, other = sample(mix, 7), sample(mix, 7), sample(mix, 8), sample(mix, 7, seed=1)
    assert first.reference is None and again.reference is None
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], again[:-1], strict=True))
    assert not torch.equal(first.target, later.target)
    assert not torch.equal(first.target, other.target)


def test_text_and_original_are_dropped_in_the_asked_shares():
    batch = sample(replace(PLAIN, drop_text=0.1, drop_image=0.2, drop_both=0.3), batch_size=6000)
    has_no_text = batch.text[:, 0, 0] == 0
    has_no_image = batch.original[:, 0, 0, 0] == 0
    found = collections.Counter(zip(has_no_text.tolist(), has_no_image.tolist(), strict=True))
    for key, share in (((True, False), 0.1), ((False, True), 0.2), ((True, True), 0.3), ((False, False), 0.4)):
        assert found[key] / 6000 == pytest.approx(share, abs=0.02)
    assert torch.equal(batch.has_condition, ~(has_no_text | has_no_image))
    assert bool((batch.target[:, 0, 0, 0] < 0).all())  # what is learnt is never dropped


def test_mirror_images_come_in_the_asked_share_with_all_their_parts():
    batch = sample(replace(PLAIN, mirror_share=0.3), 0, 6000)
    row = batch.original[:, 0, 0, 0]
    assert float((row > 6).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(batch.target[:, 0, 0, 0], -row)
    assert torch.equal(batch.text[:, 0, 0], 5 + (row - 1) % 6)


def test_identity_examples_change_nothing_and_ask_for_nothing_new():
    batch = sample(replace(PLAIN, identity_share=1.0), 0, 600)
    assert torch.equal(batch.original, batch.target)
    assert not batch.mask.any()
    row, text = batch.original[:, 0, 0, 0], batch.text[:, 0, 0]
    is_edited = row < 0
    number = row.abs() - 1
    assert torch.equal(is_edited, (5 + number) % 2 == 0)  # those whose instruction asks for a state
    assert torch.equal(text[is_edited], 5 + number[is_edited])
    assert set(text[~is_edited].tolist()) == {1, 2, 3, 4}


def test_pairs_that_say_how_to_undo_them_are_shown_backwards_in_the_asked_share():
    batch = sample(replace(PLAIN, backwards_share=0.4), 0, 6000)
    first, text = batch.original[:, 0, 0, 0], batch.text[:, 0, 0]
    number = first.abs() - 1
    is_backwards, has_undo = first < 0, number % 2 == 1
    assert torch.equal(batch.target[:, 0, 0, 0], -first)
    assert not is_backwards[~has_undo].any()
    assert float(is_backwards[has_undo].float().mean()) == pytest.approx(0.4, abs=0.03)
    assert torch.equal(text, torch.where(is_backwards, 105 + number, 5 + number))


def test_identity_examples_of_what_is_shown_backwards_keep_the_picture_before():
    batch = sample(replace(PLAIN, backwards_share=1.0, identity_share=1.0), 0, 600)
    first, text = batch.original[:, 0, 0, 0], batch.text[:, 0, 0]
    assert torch.equal(batch.original, batch.target)
    # Pair 1 asks for a state on the way back, pairs 3 and 5 do not; the others are not undone.
    assert set(text[first == 2].tolist()) == {106}
    assert set(text[(first == -4) | (first == -6)].tolist()) == {1, 2, 3, 4}
    assert not ((first == 4) | (first == 6) | (first == -2)).any()


def test_shares_and_weights_out_of_range_are_refused():
    for wrong in ({"drop_text": 0.5, "drop_both": 0.6}, {"mirror_share": -0.1}, {"backwards_share": 1.5}):
        with pytest.raises(InputError, match="shares"):
            ExampleMix(**wrong)
    with pytest.raises(InputError, match="negative"):
        LossWeights(mask=-1.0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_what_the_two_parts_say(prediction_type: str):
    schedule = Schedule(SCHEDULE.alphas_cumprod, prediction_type)
    unet = widen_unet(tiny_unet())
    batch = sample(PLAIN)
    caught = {}

    class Spy(torch.nn.Module):
        def forward(self, inputs, t, encoder_hidden_states):
            caught.update(inputs=inputs, t=t)
            return unet(inputs, t, encoder_hidden_states=encoder_hidden_states)

    weights = LossWeights(mask=0.5, changed=0.0)
    with torch.no_grad():
        loss = edit_loss(
            Spy(),
            batch,
            torch.Generator().manual_seed(3),
            schedule=schedule,
            condition_scale=0.25,
            weights=weights,
        ).whole()
        noisy, t = caught["inputs"][:, :CHANNELS], caught["t"]
        torch.testing.assert_close(caught["inputs"][:, CHANNELS:], 0.25 * batch.original)
        signal, sigma = schedule.coefficients(t, noisy)
        noise = (noisy - signal * batch.target) / sigma
        output = unet(caught["inputs"], t, encoder_hidden_states=batch.text).sample
        expected = functional.mse_loss(output[:, :CHANNELS], schedule.target(batch.target, noise, t))
    assert float(loss["noise"]) == pytest.approx(float(expected), rel=1e-3)
    assert float(loss["mask"]) == pytest.approx(-0.5 * float(torch.tensor(START_MASK_PROBABILITY).log()), rel=1e-4)


def test_a_step_on_another_device_mixes_no_devices():
    # Tensors of the device `meta` have shapes only, and are as little to be mixed with the CPU's as a GPU's are.
    batch = sample_edit_batch(make_examples(), ExampleMix(), batch_size=6, seed=0, step=0, device="meta")
    unet = widen_unet(tiny_unet())
    unet.to("meta")  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    loss = edit_loss(unet, batch, generator, schedule=SCHEDULE, condition_scale=1.0, weights=LossWeights()).whole()
    (loss["noise"] + loss["mask"]).backward()
    assert loss["noise"].device.type == "meta"


def test_timesteps_of_a_batch_cover_the_schedule_evenly():
    from restage.train.batches import draw_timesteps

    drawn = draw_timesteps(10, 1000, 1.0, torch.Generator().manual_seed(0))
    assert sorted((drawn // 100).tolist()) == list(range(10))
    assert drawn.tolist() != sorted(drawn.tolist())


def test_shifted_timesteps_are_higher_as_the_formula_says():
    from restage.train.batches import draw_timesteps

    plain = draw_timesteps(1000, 1000, 1.0, torch.Generator().manual_seed(0))
    shifted = draw_timesteps(1000, 1000, 3.0, torch.Generator().manual_seed(0))
    expected = 3 * plain / (1000 + 2 * plain) * 1000
    assert float((shifted - expected).abs().max()) <= 3  # one step of the unshifted grid is up to three here
    assert 0.6 < float(shifted.float().mean()) / 1000 < 0.7  # the mean of 3u / (1 + 2u) is 0.676
    with pytest.raises(InputError, match="shift of noise levels"):
        TrainConfig(noise_shift=0.0)


def test_masks_are_not_trained_where_a_condition_is_missing():
    unet = widen_unet(tiny_unet())
    dropped = replace(PLAIN, drop_both=1.0)
    options = {"schedule": SCHEDULE, "condition_scale": 1.0, "weights": LossWeights()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert float(edit_loss(unet, sample(dropped), generator, **options).whole()["mask"]) == 0
        assert float(edit_loss(unet, sample(PLAIN), generator, **options).whole()["mask"]) > 0


def test_the_parts_of_a_loss_add_up_to_that_of_the_whole_batch():
    unet = widen_unet(tiny_unet())
    options = {"schedule": SCHEDULE, "condition_scale": 1.0, "weights": LossWeights(mask=0.5, changed=2.0)}
    batch = sample(replace(PLAIN, drop_both=0.3))
    with torch.no_grad():
        whole = edit_loss(unet, batch, torch.Generator().manual_seed(5), **options).whole()
        loss = edit_loss(unet, batch, torch.Generator().manual_seed(5), **options, num_parts=4)
        terms = [part() for part in loss.parts]
    assert len(terms) == 3  # two rows each
    for name, value in whole.items():
        assert float(sum(part[name] for part in terms)) == pytest.approx(float(value), rel=1e-4)
