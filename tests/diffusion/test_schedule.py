from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from restage.diffusion.schedule import PREDICTION_TYPES, Schedule
from restage.records import InputError

CONFIGS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01, 0.02, 0.05, 0.1]},
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
def test_alphas_are_those_of_diffusers(config):
    expected = DDIMScheduler(**config).alphas_cumprod
    found = Schedule.from_config(config).alphas_cumprod
    torch.testing.assert_close(found.float(), expected, rtol=2e-4, atol=1e-7)  # theirs is a product in float32


@pytest.mark.parametrize("config", CONFIGS)
def test_added_noise_and_velocity_are_those_of_diffusers(config):
    reference: Any = DDPMScheduler(**config)
    schedule = Schedule.from_config(config)
    t = torch.tensor([0, schedule.num_train_timesteps // 2, schedule.num_train_timesteps - 1])
    x0, noise = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), reference.add_noise(x0, noise, t), rtol=0, atol=3e-4)
    torch.testing.assert_close(schedule.velocity(x0, noise, t), reference.get_velocity(x0, noise, t), rtol=0, atol=3e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_epsilon_and_x0_come_back_from_the_training_target(prediction_type):
    schedule = Schedule.from_config({"beta_schedule": "scaled_linear", "prediction_type": prediction_type})
    t = torch.tensor([1, 500, 999])
    x0, noise = draw(3, 4, 2, 2).double(), draw(3, 4, 2, 2, seed=1).double()
    latents = schedule.add_noise(x0, noise, t)
    epsilon = schedule.to_epsilon(schedule.target(x0, noise, t), latents, t)
    torch.testing.assert_close(epsilon, noise, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.to_x0(epsilon, latents, t), x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x0_is_that_of_a_diffusers_step(prediction_type):
    config = {"beta_schedule": "linear", "prediction_type": prediction_type, "clip_sample": False}
    schedule = Schedule.from_config(config)
    reference: Any = DDIMScheduler(**config)
    reference.set_timesteps(10)
    prediction, latents, t = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), torch.tensor([501])
    expected = reference.step(prediction, 501, latents).pred_original_sample
    found = schedule.to_x0(schedule.to_epsilon(prediction, latents, t), latents, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_timesteps_are_trailing_as_in_diffusers():
    reference = DDIMScheduler(timestep_spacing="trailing")
    for num_steps in (1, 7, 20, 50):
        reference.set_timesteps(num_steps)
        assert list(Schedule.from_config({}).timesteps(num_steps)) == reference.timesteps.tolist()


@pytest.mark.parametrize("start", [0.02, 0.3, 0.981, 1.0])
def test_timesteps_start_at_the_noise_level_and_fall(start):
    table = Schedule.from_config({}).timesteps(20, start)
    assert table[0] == round(1000 * start) - 1
    assert len(table) == 20 and all(first > second >= 0 for first, second in zip(table, table[1:], strict=False))


@pytest.mark.parametrize(("num_steps", "start"), [(0, 1.0), (20, 0.0), (20, 1.2), (20, 0.01)])
def test_impossible_step_tables_are_refused(num_steps, start):
    with pytest.raises(InputError):
        Schedule.from_config({}).timesteps(num_steps, start)


@pytest.mark.parametrize(
    "config",
    [{"beta_schedule": "sigmoid"}, {"prediction_type": "flow"}, {"rescale_betas_zero_snr": True}, {"beta_end": 2.0}],
)
def test_unknown_scheduler_configs_are_refused(config):
    with pytest.raises(InputError):
        Schedule.from_config(config)
