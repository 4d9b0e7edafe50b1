import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from restage.diffusion.attention import merge_controls
from restage.diffusion.sampler import (
    LocalBlend,
    blend_masks,
    denoise,
    initial_noise,
    sample_images,
    sample_latents,
    sample_pairs,
)
from restage.diffusion.schedule import Schedule
from restage.records import InputError
from tests.diffusion.explicit_attention import blend_explicitly, explicitly_controlled
from tests.diffusion.test_attention import PAIRS, make_control
from tests.diffusion.tiny import tiny_backbone

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


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


def test_noise_depends_on_the_seed_of_its_item_alone():
    noise = initial_noise((4, 3, 3), [5, 6])
    torch.testing.assert_close(noise[1:], initial_noise((4, 3, 3), [6]), rtol=0, atol=0)
    assert (noise[0] != noise[1]).all()


def test_guidance_is_per_item_and_one_is_none(backbone):
    text, latents = backbone.encode_text(["a red ball", "a cube"]), draw(2, 4, 16, 16)
    guidance = torch.tensor([1.0, 4.0])
    found = next(sample_latents(backbone, latents, text=text, guidance=guidance, timesteps=[999]))
    t = torch.full((2,), 999)
    with torch.no_grad():
        conditional = backbone.predict_noise(latents, t, text)
        unconditional = backbone.predict_noise(latents, t, backbone.encode_text([""]).expand(2, -1, -1))
    expected = unconditional + guidance.view(2, 1, 1, 1) * (conditional - unconditional)
    torch.testing.assert_close(found.x0, backbone.schedule.to_x0(expected, latents, t), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(expected[0], conditional[0], rtol=0, atol=1e-5)


def test_images_repeat_and_follow_their_seeds(backbone):
    first, again = (sample_images(backbone, ["a red ball"] * 2, seeds=[1, 2], steps=2) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 3, 128, 128)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(InputError):
        sample_images(backbone, ["a red ball"], seeds=[])


def sample(backbone, control, prompts, *, blend=None, num_steps=6):
    return last(
        sample_pairs(
            backbone,
            control,
            source_text=backbone.encode_text([source for source, _ in prompts]),
            edit_text=backbone.encode_text([target for _, target in prompts]),
            seeds=[11 + PAIRS_BY_PROMPT[source] for source, _ in prompts],
            guidance=torch.full((len(prompts),), 3.0),
            num_steps=num_steps,
            blend=blend,
        )
    )


PAIRS_BY_PROMPT = {pair[0]: index for index, pair in enumerate(PAIRS)}
PROMPTS = [pair[:2] for pair in PAIRS]


@pytest.mark.parametrize("index", range(3))
def test_trajectory_equals_that_of_explicit_probabilities(backbone, index):
    control, num_steps = make_control(index), 6
    found = sample(backbone, control, PROMPTS[index : index + 1], blend=LocalBlend(threshold=0.95))
    text = backbone.encode_text(["", "", *PROMPTS[index]])
    stored: list[torch.Tensor] = []

    def predict(latents, t, step):
        with explicitly_controlled(backbone.unet, control, step / num_steps, stored):
            doubled, both = torch.cat([latents, latents]), torch.cat([t, t])
            prediction = backbone.unet(doubled, both, encoder_hidden_states=text).sample
        epsilon = backbone.schedule.to_epsilon(prediction, doubled, both)
        return epsilon[:2] + 3.0 * (epsilon[2:] - epsilon[:2])

    def blend(step, latents):
        if step < 0.2 * num_steps or not control.has_words.any():
            return latents
        mask = blend_explicitly(torch.stack(stored).mean(0).unflatten(-1, (16, 16)), 0.95)
        return torch.stack([latents[0], latents[0] + mask * (latents[1] - latents[0])])

    noise = initial_noise((4, 16, 16), [11 + index]).expand(2, -1, -1, -1)
    table = backbone.schedule.timesteps(num_steps)
    expected = last(denoise(backbone.schedule, noise, predict=predict, timesteps=table, adjust=blend)).latents
    torch.testing.assert_close(torch.cat([found.source_latents, found.edit_latents]), expected, rtol=0, atol=1e-4)


def test_mixed_batch_of_pairs_equals_its_members_alone(backbone):
    controls = [make_control(index, cross=0.3 * (index + 1)) for index in range(3)]
    together = sample(backbone, merge_controls(controls), PROMPTS)
    for index, control in enumerate(controls):
        alone = sample(backbone, control, PROMPTS[index : index + 1])
        torch.testing.assert_close(together.edit_latents[index], alone.edit_latents[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.source_latents[index], alone.source_latents[0], rtol=0, atol=1e-4)


def test_source_branch_is_the_plain_sample_of_its_caption(backbone):
    found = sample(backbone, make_control(0), PROMPTS[:1])
    plain = last(
        sample_latents(
            backbone,
            initial_noise((4, 16, 16), [11]),
            text=backbone.encode_text([PROMPTS[0][0]]),
            guidance=torch.tensor([3.0]),
            timesteps=backbone.schedule.timesteps(6),
        )
    )
    torch.testing.assert_close(found.source_latents, plain.latents, rtol=0, atol=1e-4)


def test_blend_keeps_the_source_outside_of_the_mask(backbone):
    control = make_control(0, own=0.0)
    blend = LocalBlend(threshold=0.95, start=0.0)
    found = sample(backbone, control, PROMPTS[:1], blend=blend)
    assert found.maps is not None
    mask = blend_masks(found.maps, control, size=(16, 16), threshold=0.95)[:, None].bool().expand(-1, 4, -1, -1)
    assert 0.01 < mask.float().mean() < 0.9
    assert torch.equal(found.edit_latents[~mask], found.source_latents[~mask])
    assert (found.edit_latents[mask] != found.source_latents[mask]).any()


def test_pairs_without_words_may_change_everywhere():
    maps = torch.zeros(4, 16, 16)
    maps[0, 3, 3] = maps[2, 10, 10] = 1.0
    control = merge_controls([make_control(0), make_control(2)])
    masks = blend_masks(maps, control, size=(16, 16))
    assert masks[1].eq(1).all()
    assert masks[0].sum() == 18 and masks[0, 2:5, 2:5].eq(1).all() and masks[0, 9:12, 9:12].eq(1).all()
