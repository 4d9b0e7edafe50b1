import dataclasses

import pytest
import torch

from restage.diffusion.pair_sampler import SamplerConfig
from restage.pairs.generate import GenerateConfig, generate_pairs, make_control, make_jobs
from restage.records import InputError
from tests.pairs.tiny import PROMPTS, tiny_model

CONFIG = GenerateConfig(sampler=SamplerConfig(num_steps=2))


@pytest.fixture(scope="module")
def backbone():
    return tiny_model()


def test_control_is_chosen_by_what_the_pair_says(backbone):
    jobs = make_jobs(PROMPTS, CONFIG, samples_per_prompt=1, run_seed=0)
    made = [make_control(backbone, job, CONFIG) for job in jobs]
    assert [name for name, _ in made] == ["replace", "replace", "replace", "refine", "refine"]
    assert [bool(control.blend.has_words) for _, control in made] == [True, True, True, False, True]
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


@pytest.mark.parametrize("settings", [{"self_share": (0.7, 0.3)}, {"check_after": 0.0}, {"batch_size": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        GenerateConfig(**settings)
