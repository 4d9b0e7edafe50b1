import pytest
import torch

from restage.diffusion.sampling import initial_noise, sample_images, sample_latents, step_noise
from restage.records import InputError
from tests.diffusion.tiny import tiny_backbone


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def test_noise_depends_on_the_seed_of_its_item_alone():
    noise = initial_noise((4, 3, 3), [5, 6])
    torch.testing.assert_close(noise[1:], initial_noise((4, 3, 3), [6]), rtol=0, atol=0)
    assert (noise[0] != noise[1]).all()


def test_step_noise_differs_from_step_to_step_and_repeats():
    first, second = step_noise((4, 3, 3), [5], 0), step_noise((4, 3, 3), [5], 1)
    assert not torch.equal(first, second)
    assert torch.equal(first, step_noise((4, 3, 3), [5], 0))


def test_guidance_is_per_item_and_one_is_none(backbone):
    captions, latents = ["a red ball", "a cube"], initial_noise((4, 16, 16), [1, 2])
    text = backbone.encode_text(captions)
    found = next(sample_latents(backbone, captions, seeds=[1, 2], guidance=torch.tensor([1.0, 4.0]), num_steps=1))
    t = torch.full((2,), 999)
    conditional = backbone.predict_noise(latents, t, text)
    unconditional = backbone.predict_noise(latents, t, backbone.encode_text([""]).expand(2, -1, -1))
    expected = unconditional + torch.tensor([1.0, 4.0]).view(2, 1, 1, 1) * (conditional - unconditional)
    torch.testing.assert_close(found.x0, backbone.schedule.to_x0(expected, latents, t), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(expected[0], conditional[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_ancestral"])
def test_images_repeat_and_follow_their_seeds(backbone, solver):
    first, again = (sample_images(backbone, ["a red ball"] * 2, seeds=[1, 2], steps=2, solver=solver) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 3, 128, 128)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(InputError):
        sample_images(backbone, ["a red ball"], seeds=[])
