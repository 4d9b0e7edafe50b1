import dataclasses

import pytest
import torch

from restage.diffusion.config import ControlOptions, LocalBlend, SamplerConfig
from restage.diffusion.control import PairControl
from restage.diffusion.pair_sampler import PairBatch, map_size_of, sample_pairs
from restage.diffusion.sampling import sample_latents
from restage.diffusion.word_maps import blend_masks
from restage.records import InputError
from tests.diffusion.cases import CASES, Case
from tests.diffusion.explicit import explicit_steps
from tests.diffusion.tiny import tiny_backbone

NUM_STEPS = 5  # windows of Prompt-to-Prompt's public code, and of the twin, then hold the same steps as ours
SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def single_backbone():
    return tiny_backbone()


def make_batch(backbone, cases, *, guidance=3.0, source_of=None):
    source_of = list(range(len(cases))) if source_of is None else source_of
    owners = [source_of.index(i) for i in range(max(source_of) + 1)]
    return PairBatch(
        control=PairControl.merge([case.control() for case in cases]),
        source_of=torch.tensor(source_of),
        source_text=backbone.encode_prompts([cases[i].source for i in owners]),
        edit_text=backbone.encode_prompts([case.target for case in cases]),
        seeds=tuple(cases[i].seed for i in owners),
        guidance=torch.full((len(owners),), guidance),
    )


def sample(backbone, cases, *, config=None, **batch):
    config = config or SamplerConfig(num_steps=NUM_STEPS, solver="ddim")
    *_, last = sample_pairs(backbone, make_batch(backbone, cases, **batch), config)
    return last


def latents_of(state):
    return torch.cat([state.source_latents[state.source_of], state.edit_latents])


def distance_to_twin(backbone, case, solver):
    found = sample(backbone, [case], config=SamplerConfig(num_steps=NUM_STEPS, solver=solver))
    controller = case.controller(NUM_STEPS)
    *_, expected = explicit_steps(backbone, controller, seed=case.seed, guidance=3.0, shape=SHAPE, solver=solver)
    assert latents_of(found).dtype == expected.dtype
    return float((latents_of(found) - expected).abs().max())


@pytest.mark.parametrize("solver", ["ddim", "euler_ancestral"])
@pytest.mark.parametrize("name", CASES)
def test_trajectory_equals_that_of_explicit_probabilities(backbone, name, solver):
    assert distance_to_twin(backbone, CASES[name], solver) <= 1e-8


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.cuts_maps])
def test_trajectory_equals_that_of_explicit_probabilities_in_float32(single_backbone, name):
    assert distance_to_twin(single_backbone, CASES[name], "ddim") <= 1e-4


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_ancestral"])
def test_a_batch_of_all_kinds_equals_its_members_alone(backbone, solver):
    cases = [dataclasses.replace(case, seed=11 + i) for i, case in enumerate(CASES.values())]
    assert len(cases) >= 8
    config = SamplerConfig(num_steps=NUM_STEPS, solver=solver)
    together = sample(backbone, cases, config=config)
    for i, case in enumerate(cases):
        alone = sample(backbone, [case], config=config)
        torch.testing.assert_close(together.edit_latents[i], alone.edit_latents[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.source_latents[i], alone.source_latents[0], rtol=0, atol=1e-4)


def test_edits_of_one_source_equal_the_same_edits_with_their_own(backbone):
    cases = [CASES[name] for name in ("refine", "words that are kept", "MasaCtrl")]
    shared = sample(backbone, [*cases, CASES["replace"]], source_of=[0, 0, 0, 1])
    own = sample(backbone, [*cases, CASES["replace"]])
    assert len(shared.source_latents) == 2 and len(own.source_latents) == 4
    torch.testing.assert_close(latents_of(shared), latents_of(own), rtol=0, atol=1e-4)


def test_source_branch_is_the_plain_sample_of_its_caption(single_backbone):
    case = CASES["replace"]
    found = sample(single_backbone, [case])
    scales = torch.tensor([3.0])
    *_, plain = sample_latents(
        single_backbone, [case.source], seeds=[case.seed], guidance=scales, num_steps=NUM_STEPS, solver="ddim"
    )
    torch.testing.assert_close(found.source_latents, plain.latents, rtol=0, atol=1e-4)


def test_filled_up_batches_give_the_same_pairs_in_few_sizes(backbone, monkeypatch):
    cases = [CASES[name] for name in ("refine", "words that are kept", "MasaCtrl", "replace", "reweight")]
    sizes = []
    predict = backbone.predict_noise

    def counted(latents, *rest, **options):
        sizes.append(len(latents))
        return predict(latents, *rest, **options)

    monkeypatch.setattr(backbone, "predict_noise", counted)

    source_of = [0, 0, 0, 1, 2]
    config = SamplerConfig(num_steps=NUM_STEPS, pad_to=4)
    filled = sample(backbone, cases, config=config, source_of=source_of)
    assert sizes == [2 * (4 + 8)] * NUM_STEPS
    plain = sample(backbone, cases, config=SamplerConfig(num_steps=NUM_STEPS), source_of=source_of)
    assert len(filled.edit_latents) == len(plain.edit_latents) == 5
    assert len(filled.source_latents) == len(plain.source_latents) == 3
    torch.testing.assert_close(latents_of(filled), latents_of(plain), rtol=0, atol=1e-4)
    torch.testing.assert_close(filled.maps, plain.maps, rtol=0, atol=1e-5)


def test_steps_without_guidance_use_the_plain_prediction(backbone):
    case = CASES["replace"]
    off = SamplerConfig(num_steps=NUM_STEPS, guidance_window=(0.5, 0.5))
    none = sample(backbone, [case], guidance=1.0, config=SamplerConfig(num_steps=NUM_STEPS))
    torch.testing.assert_close(latents_of(sample(backbone, [case], config=off)), latents_of(none), rtol=0, atol=1e-4)
    part = sample(backbone, [case], config=SamplerConfig(num_steps=NUM_STEPS, guidance_window=(0.0, 0.5)))
    assert (latents_of(part) - latents_of(none)).abs().mean() > 1e-3


def test_blend_keeps_the_source_outside_of_the_mask(backbone):
    options = ControlOptions(self_attention="none", blend=LocalBlend(threshold=0.95, start=0.0))
    case = dataclasses.replace(CASES["replace"], options=options)
    found = sample(backbone, [case], config=SamplerConfig(num_steps=NUM_STEPS))
    assert found.maps is not None
    mask = blend_masks(found.maps, case.control().blend, size=(16, 16))[:, None].bool().expand(-1, 4, -1, -1)
    assert 0.01 < mask.float().mean() < 0.9
    assert torch.equal(found.edit_latents[~mask], found.source_latents[~mask])
    assert (found.edit_latents[mask] != found.source_latents[mask]).any()


def test_masks_are_pooled_words_without_those_that_are_kept():
    maps = torch.zeros(4, 2, 16, 16)
    maps[0, 0, 3, 3] = maps[2, 0, 10, 10] = 1.0
    maps[2, 1, 10, 10] = 1.0
    kept = Case("a cube on grass", "a cube on grass", ControlOptions(), (), ("cube",), ("grass",)).control()
    free = CASES["nothing"].control()
    masks = blend_masks(maps, PairControl.merge([kept, free]).blend, size=(16, 16))
    assert masks[1].eq(1).all()  # a pair without words may change everywhere
    assert masks[0].sum() == 17 and masks[0, 2:5, 2:5].eq(1).all() and masks[0, 10, 10] == 0


def test_maps_are_taken_nearest_to_sixteen_from_above():
    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    assert map_size_of({"down_block_types": [cross, cross, cross, plain]}, 64) == 16  # Stable Diffusion 1 and 2
    assert map_size_of({"down_block_types": [plain, cross, cross]}, 128) == 32  # Stable Diffusion XL
    assert map_size_of({"down_block_types": [cross, cross]}, 16) == 16  # the miniature
    assert map_size_of({"down_block_types": [cross]}, 8) == 8
    with pytest.raises(InputError, match="no cross attention"):
        map_size_of({"down_block_types": [plain]}, 16)


@pytest.mark.parametrize("source_of", [[0, 2], [-1, 1], [0]])
def test_a_batch_whose_parts_do_not_fit_is_refused(backbone, source_of):
    batch = make_batch(backbone, [CASES["refine"], CASES["replace"]])
    with pytest.raises(InputError):
        dataclasses.replace(batch, source_of=torch.tensor(source_of))


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"pad_to": 0}, {"guidance_window": (0.8, 0.2)}])
def test_bad_sampler_settings_are_refused(settings):
    with pytest.raises(InputError):
        SamplerConfig(**settings)


def picture_batch(backbone, cases, num_steps=NUM_STEPS):
    generator = torch.Generator().manual_seed(5)
    shape = (num_steps + 1, len(cases), *SHAPE)
    trajectories = torch.randn(shape, generator=generator, dtype=torch.float64)
    return dataclasses.replace(make_batch(backbone, cases), trajectories=trajectories), trajectories


def test_sources_that_are_pictures_are_held_to_their_trajectories_and_edits_start_there(backbone):
    cases = list(CASES.values())[:2]
    batch, trajectories = picture_batch(backbone, cases)
    config = SamplerConfig(num_steps=NUM_STEPS, solver="ddim")
    states = list(sample_pairs(backbone, batch, config))
    for state in states:
        assert torch.equal(state.source_latents, trajectories[state.step])
    other = dataclasses.replace(batch, trajectories=torch.cat([trajectories[:1] + 1, trajectories[1:]]))
    *_, last = sample_pairs(backbone, other, config)
    assert not torch.allclose(last.edit_latents, states[-1].edit_latents)


def test_pictures_stay_with_their_edits_when_others_are_left_out(backbone):
    batch, trajectories = picture_batch(backbone, list(CASES.values())[:2])
    config = SamplerConfig(num_steps=NUM_STEPS, solver="ddim")
    *_, last = sample_pairs(backbone, batch.select(torch.tensor([1])), config)
    assert len(last.edit_latents) == 1 and torch.equal(last.source_latents[0], trajectories[-1, 1])


def test_trajectories_of_other_steps_are_refused(backbone):
    batch, _ = picture_batch(backbone, list(CASES.values())[:2], num_steps=NUM_STEPS + 1)
    with pytest.raises(InputError, match="one level more"):
        next(sample_pairs(backbone, batch, SamplerConfig(num_steps=NUM_STEPS)))
