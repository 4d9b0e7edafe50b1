import pytest
import torch

from restage.diffusion.sampling import denoise, invert_latents
from restage.records import InputError
from tests.diffusion.tiny import tiny_backbone

CAPTIONS = ["a red cube on the grass", "a big snowman at night"]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone(dtype=torch.float64)


@pytest.fixture(scope="module")
def clean():
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sampled_back(backbone, found, num_steps):
    text = backbone.encode_prompts(CAPTIONS)
    steps = denoise(
        backbone.schedule,
        found[0],
        predict=lambda latents, t, step: backbone.predict_noise(latents.double(), t, text),
        timesteps=backbone.schedule.timesteps(num_steps),
        solver="ddim",
    )
    *_, last = steps
    return last.latents


def test_a_sampler_without_guidance_comes_back_to_the_picture(backbone, clean):
    text = backbone.encode_prompts(CAPTIONS)

    def error(num_iterations):
        found = invert_latents(backbone, clean, text, num_steps=6, num_iterations=num_iterations)
        assert found.shape == (7, *clean.shape) and torch.equal(found[-1], clean)
        return float((sampled_back(backbone, found, 6) - clean).abs().max())

    errors = [error(count) for count in (1, 3, 12)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-4


@pytest.mark.parametrize("changes", [{"num_iterations": 0}, {"text": 1}])
def test_what_does_not_fit_is_refused(backbone, clean, changes):
    text = backbone.encode_prompts(CAPTIONS[: changes.get("text", 2)])
    with pytest.raises(InputError, match="iteration"):
        invert_latents(backbone, clean, text, num_steps=4, num_iterations=changes.get("num_iterations", 1))
