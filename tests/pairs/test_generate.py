import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from restage.diffusion.config import SamplerConfig
from restage.pairs.config import COMPILED_FROM, GenerateConfig
from restage.pairs.encoding import decode_picture
from restage.pairs.generate import generate_pairs, make_control, make_jobs, reversed_prompt
from restage.records import InputError, PromptPair
from tests.pairs.tiny import PROMPTS, tiny_model

CONFIG = GenerateConfig(sampler=SamplerConfig(num_steps=2))


@pytest.fixture(scope="module")
def backbone():
    return tiny_model()


def test_control_is_chosen_by_what_the_pair_says(backbone):
    jobs = make_jobs(PROMPTS, CONFIG, samples_per_prompt=1, run_seed=0)
    made = [make_control(backbone, job, CONFIG) for job in jobs]
    assert [name for name, _ in made] == ["replace", "replace", "replace", "refine", "refine", "replace"]
    assert [bool(control.blend.has_words) for _, control in made] == [True, True, True, False, True, True]
    assert all(0.3 <= float(control.self_attention.window[0, 1]) <= 0.7 for _, control in made)


def test_swaps_that_do_not_align_are_refined_and_missing_words_refused(backbone):
    (job,) = make_jobs(PROMPTS[:1], CONFIG, samples_per_prompt=1, run_seed=0)

    def changed(**changes):
        return dataclasses.replace(job, prompt=dataclasses.replace(job.prompt, **changes))

    assert make_control(backbone, changed(target="two blue cubes"), CONFIG)[0] == "refine"
    with pytest.raises(InputError, match="castle"):
        make_control(backbone, changed(words=("castle",)), CONFIG)
    with pytest.raises(InputError, match="green"):
        make_control(backbone, changed(swaps=(("green", "blue"),)), CONFIG)
    with pytest.raises(InputError, match="tokens"):
        make_control(backbone, changed(source="a red cube " * 20), CONFIG)


def _job(kind, words=("ball",)):
    prompt = PromptPair(
        source="a red cube", target="a red cube and a blue ball", instruction="add a ball", kind=kind, words=words
    )
    (job,) = make_jobs([prompt], CONFIG, samples_per_prompt=1, run_seed=0)
    return job


def test_edits_of_shape_are_held_by_blend_alone_where_words_say_what_may_change(backbone):
    def held(job, config=CONFIG):
        control = make_control(backbone, job, config)[1]
        return bool((control.cross.window[..., 1] > 0).any()), bool(control.self_attention.kind.any())

    assert held(_job("add")) == (False, False)
    assert held(_job("add", words=())) == held(_job("time")) == (True, True)
    assert held(_job("add"), dataclasses.replace(CONFIG, shape_control=None)) == (True, True)


def test_a_removal_is_an_addition_whose_pictures_change_places(backbone):
    add = _job("add")
    removal = dataclasses.replace(add, prompt=dataclasses.replace(reversed_prompt(add.prompt), kind="remove"))
    added, removed = (generate_pairs(backbone, [job], CONFIG) for job in (add, removal))
    assert torch.equal(added.sources, removed.edited) and torch.equal(added.edited, removed.sources)
    assert torch.equal(added.masks, removed.masks)
    controlled = dataclasses.replace(CONFIG, shape_control=None)
    straight = dataclasses.replace(controlled, is_removal_reversed=False)
    back, forth = (generate_pairs(backbone, [removal], config) for config in (controlled, straight))
    assert not torch.equal(back.sources, forth.sources)


def test_reversing_twice_gives_the_prompt_pair_again():
    back = reversed_prompt(PROMPTS[0])
    assert (back.source, back.target) == (PROMPTS[0].target, PROMPTS[0].source)
    assert back.swaps == tuple((new, old) for old, new in PROMPTS[0].swaps) and back.swaps
    assert reversed_prompt(back) == PROMPTS[0]


def test_samples_of_a_prompt_differ_and_ids_depend_on_all_that_matters():
    def ids(config=CONFIG, seed=0):
        return [job.id for job in make_jobs(PROMPTS[:2], config, samples_per_prompt=2, run_seed=seed)]

    assert len({*ids(), *ids(seed=1), *ids(GenerateConfig(sampler=SamplerConfig(num_steps=3)))}) == 12
    assert ids() == ids()


def test_pairs_are_pictures_with_masks_and_repeat_bit_for_bit(backbone):
    jobs = make_jobs(PROMPTS[2:4], CONFIG, samples_per_prompt=1, run_seed=0)
    first, again = generate_pairs(backbone, jobs, CONFIG), generate_pairs(backbone, jobs, CONFIG)
    assert first.sources.shape == first.edited.shape == (2, 3, 128, 128)
    for image in (first.sources, first.edited):
        assert image.min() >= 0 and image.max() <= 1
    assert set(first.masks.unique().tolist()) <= {0.0, 1.0} and first.masks[1].eq(1).all()
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


def test_only_long_runs_on_machines_that_can_are_compiled(monkeypatch):
    def decided(num_pairs, **changes):
        return dataclasses.replace(CONFIG, **changes).for_run(num_pairs).is_compiled

    monkeypatch.setattr("restage.diffusion.hardware.can_compile", lambda: True)
    assert decided(COMPILED_FROM) and not decided(COMPILED_FROM - 1)
    assert decided(1, is_compiled=True) and not decided(COMPILED_FROM, is_compiled=False)
    monkeypatch.setattr("restage.diffusion.hardware.can_compile", lambda: False)
    assert not decided(COMPILED_FROM)


@pytest.mark.parametrize("settings", [{"self_share": (0.7, 0.3)}, {"batch_size": 0}, {"inversion_iterations": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        GenerateConfig(**settings)


def test_prompt_pairs_with_one_source_caption_share_their_source(backbone):
    prompts = [
        PROMPTS[0],
        dataclasses.replace(PROMPTS[0], target="a red cube on the grass at night", swaps=(), words=()),
    ]
    jobs = make_jobs(prompts, CONFIG, samples_per_prompt=1, run_seed=0)
    assert jobs[0].seed == jobs[1].seed and jobs[0].self_share != jobs[1].self_share
    made = generate_pairs(backbone, jobs, CONFIG)
    assert torch.equal(made.sources[0], made.sources[1])
    assert not torch.equal(made.edited[0], made.edited[1])
    alone = generate_pairs(backbone, jobs[1:], CONFIG)
    torch.testing.assert_close(made.edited[1], alone.edited[0], rtol=0, atol=0.02)  # bfloat16, other batch


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((192, 128), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


def pictured_job(picture, prompt, pictured="source"):
    (job,) = make_jobs([prompt], CONFIG, samples_per_prompt=1, run_seed=0)
    prompt = dataclasses.replace(prompt, picture="given.png", pictured=pictured)
    return dataclasses.replace(job, prompt=prompt, picture=picture)


def test_one_side_of_a_pair_is_the_picture_that_is_given(backbone, picture):
    given = decode_picture(picture, (128, 128))[None]
    expected = backbone.decode_latents(backbone.encode_images(given))[0]
    prompt = dataclasses.replace(_job("remove").prompt)
    forth = generate_pairs(backbone, [pictured_job(picture, prompt)], CONFIG)
    torch.testing.assert_close(forth.sources[0], expected, rtol=0, atol=0.03)
    assert not torch.allclose(forth.edited[0], expected, atol=0.03)
    back = generate_pairs(backbone, [pictured_job(picture, prompt, "target")], CONFIG)
    torch.testing.assert_close(back.edited[0], expected, rtol=0, atol=0.03)
    assert not torch.allclose(back.sources[0], expected, atol=0.03)


def test_pairs_with_and_without_pictures_go_in_one_batch(backbone, picture):
    plain = make_jobs(PROMPTS[:2], CONFIG, samples_per_prompt=1, run_seed=0)
    given = pictured_job(picture, PROMPTS[2])
    mixed = generate_pairs(backbone, [plain[0], given, plain[1]], CONFIG)
    alone = generate_pairs(backbone, plain, CONFIG), generate_pairs(backbone, [given], CONFIG)
    assert torch.equal(mixed.edited[[0, 2]], alone[0].edited) and torch.equal(mixed.edited[1], alone[1].edited[0])
    assert len(mixed.controls) == len(mixed.steps) == 3


def test_a_reshape_of_a_picture_is_held_to_its_place(backbone, picture):
    prompt = dataclasses.replace(PROMPTS[0], kind="reshape")
    job = pictured_job(picture, prompt)
    windows = make_control(backbone, job, CONFIG)[1].cross.window[0]
    assert {(0.0, round(float(end), 3)) for end in windows[:, 1]} == {(0.0, 0.8), (0.0, 0.2)}
    free = make_control(backbone, dataclasses.replace(job, picture=b""), CONFIG)[1].cross.window
    assert not bool((free[..., 1] > 0).any())


def test_a_picture_that_cannot_be_decoded_is_refused(backbone):
    with pytest.raises(InputError, match="not readable as an image"):
        generate_pairs(backbone, [pictured_job(b"no picture", PROMPTS[0])], CONFIG)


def test_a_picture_is_turned_upright_and_cut_from_its_middle():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255  # the middle; left of it the corner that shows which way is up
    pixels[:10, :10] = (255, 0, 0)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be upright
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    assert decode_picture(buffer.getvalue(), (20, 20)).min() > 0.99
    whole = decode_picture(buffer.getvalue(), (40, 20))
    assert whole.shape == (3, 40, 20) and whole[0, 0, -1] == 1 and whole[1, 0, -1] == 0


def test_a_removal_from_a_picture_is_painted_by_what_is_behind(backbone, picture):
    prompt = PromptPair(
        source="a red cube and a blue ball on sand",
        target="a red cube on sand",
        instruction="remove the ball",
        kind="remove",
        words=("ball",),
        behind="sand",
    )
    by_caption = dataclasses.replace(prompt, target="sand", behind="")
    made, expected, filled = (
        generate_pairs(backbone, [pictured_job(picture, some)], CONFIG)
        for some in (prompt, by_caption, dataclasses.replace(prompt, behind=""))
    )
    assert torch.equal(made.edited, expected.edited) and not torch.equal(made.edited, filled.edited)


def test_what_is_behind_counts_only_where_it_is_painted():
    prompt = dataclasses.replace(_job("remove").prompt, behind="sand", picture="given.png")
    assert prompt.is_painted_behind and prompt.id != dataclasses.replace(prompt, behind="").id
    for other in ({"picture": ""}, {"pictured": "target"}, {"words": ()}, {"kind": "add"}, {"behind": ""}):
        changed = dataclasses.replace(prompt, **other)
        assert not changed.is_painted_behind and changed.id == dataclasses.replace(changed, behind="").id
    assert not reversed_prompt(prompt).is_painted_behind
