import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

from restage.diffusion.sampling import denoise
from restage.diffusion.schedule import Schedule
from restage.records import InputError

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curved(latents, t, step=0):
    """A smooth stand-in for a model: not a line, so that orders of solvers differ."""
    return torch.tanh(latents) * (t / 1000 + 0.2).view(-1, 1, 1, 1)


def last(states):
    *_, state = states
    return state


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("solver", "num_steps"), [("ddim", 10), ("dpmpp_2m", 10), ("dpmpp_2m", 20), ("dpmpp_2m", 1)])
def test_solver_gives_what_that_of_diffusers_gives(solver, num_steps):
    if solver == "ddim":
        reference = DDIMScheduler(**CONFIG, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    else:
        reference = DPMSolverMultistepScheduler(**CONFIG, timestep_spacing="trailing", final_sigmas_type="zero")
    reference.set_timesteps(num_steps)
    schedule, latents = Schedule.from_config(CONFIG), draw(2, 4, 4, 4)
    found = last(
        denoise(schedule, latents, predict=curved, timesteps=schedule.timesteps(num_steps), solver=solver)
    ).latents
    for t in reference.timesteps:
        latents = reference.step(curved(latents, torch.full((2,), int(t))), t, latents).prev_sample  # pyright: ignore
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("start", [1.0, 0.4])
def test_a_perfect_model_gives_back_the_clean_latents(solver, start):
    schedule, x0, noise = Schedule.from_config(CONFIG), draw(2, 4, 4, 4), draw(2, 4, 4, 4, seed=1)
    table = schedule.timesteps(8, start)
    latents = schedule.add_noise(x0, noise, torch.full((2,), table[0]))
    states = list(denoise(schedule, latents, predict=lambda x, t, step: noise, timesteps=table, solver=solver))
    torch.testing.assert_close(states[-1].latents, x0, rtol=0, atol=1e-4)
    assert [state.step for state in states] == list(range(1, 9)) and states[0].timestep == table[0]


def test_second_order_is_closer_to_the_fine_solution_than_first():
    schedule, latents = Schedule.from_config(CONFIG), draw(2, 4, 4, 4)

    def solve(num_steps, solver):
        table = schedule.timesteps(num_steps)
        return last(denoise(schedule, latents, predict=curved, timesteps=table, solver=solver)).latents

    exact = solve(800, "ddim")
    errors = [(solve(16, solver) - exact).abs().mean() for solver in ("dpmpp_2m", "ddim")]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(("solver", "timesteps"), [("euler", [5]), ("ddim", []), ("ddim", [5, 5])])
def test_unknown_solvers_and_tables_that_do_not_fall_are_refused(solver, timesteps):
    with pytest.raises(InputError):
        next(denoise(Schedule.from_config({}), draw(1, 4, 2, 2), predict=curved, timesteps=timesteps, solver=solver))


def test_grad_mode_is_the_callers_between_steps():
    schedule = Schedule.from_config({})
    for _ in denoise(schedule, draw(1, 4, 2, 2), predict=curved, timesteps=[500, 100]):
        assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_euler_ancestral_gives_what_that_of_diffusers_gives(monkeypatch):
    reference = EulerAncestralDiscreteScheduler(**CONFIG, timestep_spacing="trailing")  # pyright: ignore
    reference.set_timesteps(8)
    drawn = [draw(2, 4, 4, 4, seed=step) for step in range(8)]
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    queue = iter(drawn)
    monkeypatch.setattr(module, lambda *args, **kwargs: next(queue))
    schedule, latents = Schedule.from_config(CONFIG), draw(2, 4, 4, 4)
    table = schedule.timesteps(8)
    states = denoise(
        schedule, latents, predict=curved, timesteps=table, solver="euler_ancestral", step_noise=lambda i: drawn[i]
    )
    found = last(states).latents
    expected = latents / float(schedule.alphas_cumprod[table[0]]) ** 0.5
    for t in reference.timesteps:
        ours = reference.scale_model_input(expected, t)
        expected = reference.step(curved(ours, torch.full((2,), int(t))), t, expected).prev_sample  # pyright: ignore
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_euler_ancestral_without_its_noise_is_refused():
    with pytest.raises(InputError, match="step_noise"):
        next(
            denoise(Schedule.from_config({}), draw(1, 4, 2, 2), predict=curved, timesteps=[5], solver="euler_ancestral")
        )
