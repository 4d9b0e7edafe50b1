import math

import pytest
import torch

from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Branches, Edited
from restage.edit.job import EditJob
from restage.edit.methods import Dds, DreamCatalyst, Pds, Sds
from restage.edit.methods.distill import Draw, dds_gradient, draw_timestep, sds_gradient
from restage.edit.methods.pds import dreamcatalyst_weights, pds_gradient, pds_weights, rest_share
from restage.records import InputError

SCHEDULE = Schedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def knows(image: torch.Tensor, schedule: Schedule = SCHEDULE):
    """The prediction of a model to which all the world is one picture."""

    def predict(latents, timestep, guidance):
        signal, sigma = schedule.coefficients(torch.tensor([timestep]), latents)
        return (latents - signal * image) / sigma

    return predict


def make_draw(timestep: int = 400, **changes) -> Draw:
    parts = {"edited": noise(0), "source": noise(1), "noise": noise(2), **changes}
    branches = parts.pop("branches", None) or Branches(knows(noise(3)), knows(parts["source"]))
    return Draw(0, 10, timestep, branches=branches, schedule=SCHEDULE, **parts)


@pytest.mark.parametrize("timestep", [20, 400, 980])
def test_the_sds_gradient_of_a_model_of_one_picture_points_away_from_it(timestep):
    draw = make_draw(timestep)
    predicted = draw.branches.edited(draw.noised(draw.edited), timestep, None)
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    closed = (1 - kept) * math.sqrt(kept / (1 - kept)) * (draw.edited - noise(3))
    gradient = sds_gradient(predicted, draw.noise, schedule=SCHEDULE, timestep=timestep)
    assert torch.allclose(gradient, closed, atol=1e-4)


@pytest.mark.parametrize("timestep", [50, 500, 948])
def test_the_dds_gradient_of_a_model_of_two_pictures_does_not_depend_on_the_noise(timestep):
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    closed = math.sqrt(kept / (1 - kept)) * (noise(0) - noise(3))
    for seed in (2, 5):
        gradient = dds_gradient(*make_draw(timestep, noise=noise(seed)).predictions(None))
        assert torch.allclose(gradient, closed, atol=2e-4)


def test_identical_branches_have_no_dds_and_no_pds_gradient():
    draw = make_draw(source=noise(0), branches=Branches(knows(noise(3)), knows(noise(3))))
    edited, source = draw.predictions(None)
    assert torch.equal(dds_gradient(edited, source), torch.zeros_like(edited))
    for stride in (1, 2, 7):
        weights = pds_weights(SCHEDULE, draw.timestep, stride)
        assert pds_gradient(draw.edited - draw.source, edited - source, weights).abs().max() == 0


@pytest.mark.parametrize("timestep", [1, 30, 500, 999])
def test_with_stride_one_pds_is_dds_with_another_weight(timestep):
    weights = pds_weights(SCHEDULE, timestep, 1)
    assert weights.identity == pytest.approx(0, abs=1e-9 * weights.edit + 1e-12)
    draw = make_draw(timestep)
    edited, source = draw.predictions(None)
    gradient = pds_gradient(draw.edited - draw.source, edited - source, weights)
    assert torch.allclose(gradient, weights.edit * dds_gradient(edited, source), rtol=1e-4, atol=1e-6)


def test_with_stride_two_pds_pulls_back_to_the_source():
    weights = [pds_weights(SCHEDULE, timestep, 2).identity for timestep in (30, 500, 980)]
    assert weights[0] > 0.1 > weights[1] > weights[2] > 1e-3


@pytest.mark.parametrize(("stride", "low", "high"), [(1, 1, 1), (2, 0.5, 0.7)])
@pytest.mark.parametrize("timestep", [20, 300, 700, 979])
def test_pds_comes_to_rest_half_way_with_stride_two_and_at_the_edit_with_stride_one(stride, low, high, timestep):
    schedule = Schedule.from_config({"beta_schedule": "squaredcos_cap_v2"})
    weights = pds_weights(schedule, timestep, stride)
    share = rest_share(weights, schedule, timestep)
    assert low - 1e-6 <= share <= high + 1e-6
    source, target = noise(1), noise(3)
    there = source + share * (target - source)
    branches = Branches(knows(target, schedule), knows(source, schedule))
    draw = Draw(0, 10, timestep, edited=there, source=source, noise=noise(2), branches=branches, schedule=schedule)
    edited, untold = draw.predictions(None)
    gradient = pds_gradient(draw.edited - draw.source, edited - untold, weights)
    assert gradient.abs().max() < 1e-3 * weights.edit


@pytest.mark.parametrize("stride", [1, 2])
def test_the_pds_gradient_is_the_difference_of_stochastic_latents(stride):
    """`(x_t' - mu(x_t, x0_hat)) / sigma` of the edited minus that of the source, written out as in the paper."""
    timestep, draw = 600, make_draw(600)
    kept, before, one = (float(SCHEDULE.alphas_cumprod[timestep - back]) for back in (0, stride, 1))
    beta, other_noise = 1 - kept / one, noise(9)
    predictions = draw.predictions(None)

    def stochastic(clean: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        noisy = draw.noised(clean)
        x0 = (noisy - math.sqrt(1 - kept) * predicted) / math.sqrt(kept)
        mean = math.sqrt(before) * beta / (1 - kept) * x0
        mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - kept) * noisy
        sigma = math.sqrt(beta * (1 - before) / (1 - kept))
        return (math.sqrt(before) * clean + math.sqrt(1 - before) * other_noise - mean) / sigma

    explicit = stochastic(draw.edited, predictions[0]) - stochastic(draw.source, predictions[1])
    weights = pds_weights(SCHEDULE, timestep, stride)
    gradient = pds_gradient(draw.edited - draw.source, predictions[0] - predictions[1], weights)
    assert torch.allclose(gradient, explicit, atol=2e-4)


def test_dreamcatalyst_weighs_as_its_paper_says():
    weights = dreamcatalyst_weights(DreamCatalyst(), 0.5)
    assert weights.identity == pytest.approx(0.075 * math.e**0.5)
    assert weights.edit == pytest.approx(0.2 + 0.8 * 0.5 ** (1 / math.e))


def test_timesteps_are_drawn_between_their_shares_and_reach_both_ends():
    drawn = [draw_timestep(SCHEDULE, 0.05, 0.949, seed=seed) for seed in range(3000)]
    assert 50 <= min(drawn) < 60 and 940 < max(drawn) <= 948
    assert drawn[0] == draw_timestep(SCHEDULE, 0.05, 0.949, seed=0)


def test_settings_of_distillation_that_make_no_sense_are_refused():
    for method in (Sds, Dds, Pds, DreamCatalyst):
        with pytest.raises(InputError, match="lowest_noise"):
            method(lowest_noise=0.9, highest_noise=0.1)
    with pytest.raises(InputError, match="stride"):
        Pds(stride=0)


def test_an_editor_without_predictions_cannot_be_distilled(tiny_scene):
    class Plain:
        def edit(self, batch):
            return Edited(batch.views, batch.views[:, 0])

    capture = tiny_scene.capture.select(tiny_scene.capture.train_indices)
    job = EditJob(tiny_scene.splats, capture, tiny_scene.capture.train_indices, tiny_scene.request, Plain(), 0)
    with pytest.raises(InputError, match="does not offer"):
        next(Sds().run(job))
