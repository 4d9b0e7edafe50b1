"""The loss of fitting: structural similarity as others compute it, weights, and shares."""

import pytest
import torch
from skimage.metrics import structural_similarity

from restage.records import InputError
from restage.scenes.config import PhotometricLoss
from restage.scenes.losses import ssim_map


def pictures(height: int = 19, width: int = 26) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=generator)
    return image, (image + 0.2 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


def test_structural_similarity_is_that_of_scikit_image():
    image, target = pictures()
    mean, full = structural_similarity(  # pyright: ignore[reportAssignmentType]  (three with gradient=True)
        image.numpy(),
        target.numpy(),
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    ours = ssim_map(image, target)
    torch.testing.assert_close(ours, torch.from_numpy(full)[:, 5:-5, 5:-5], atol=2e-5, rtol=0)
    assert float(ours.mean()) == pytest.approx(float(mean), abs=1e-5)
    assert 0.2 < float(mean) < 0.95


def plain_similarity(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Equation 13 of Wang et al. by convolutions, which torch differentiates."""
    taps = torch.exp(-torch.arange(-5.0, 6, dtype=image.dtype).square() / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    x, y, xx, yy, xy = (
        torch.nn.functional.conv2d(item[:, None], window)[:, 0]
        for item in (image, target, image * image, target * target, image * target)
    )
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    return luminance * (2 * (xy - x * y) + c2) / (xx - x * x + yy - y * y + c2)


def test_structural_similarity_has_the_right_gradients():
    image, target = pictures(12, 13)
    weights = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(1))
    given, exact = image.clone().requires_grad_(), image.double().requires_grad_()
    (weights * ssim_map(given, target)).sum().backward()
    (weights * plain_similarity(exact, target.double())).sum().backward()
    assert given.grad is not None and exact.grad is not None and float(exact.grad.abs().max()) > 0.01
    torch.testing.assert_close(given.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_equal_pictures_are_wholly_similar_and_cost_nothing():
    image, _ = pictures()
    torch.testing.assert_close(ssim_map(image, image), torch.ones(3, 9, 16), atol=1e-5, rtol=0)
    assert float(PhotometricLoss(ssim_share=0.5)(image, image)) == pytest.approx(0.0, abs=1e-5)


def test_the_loss_of_3d_gaussian_splatting_is_one_of_the_shares():
    image, target = pictures()
    expected = 0.8 * (image - target).abs().mean() + 0.2 * (1 - ssim_map(image, target).mean())
    torch.testing.assert_close(PhotometricLoss(l2_share=0.0, ssim_share=0.2)(image, target), expected)


@pytest.mark.parametrize("ssim_share", [0.0, 0.3, 1.0])
def test_pixels_without_weight_do_not_count(ssim_share):
    image, target = pictures()
    loss = PhotometricLoss(ssim_share=ssim_share)
    weights = torch.ones(19, 26)
    torch.testing.assert_close(loss(image, target, weights), loss(image, target))
    weights[:, 13:] = 0.0
    spoilt = target.clone()
    spoilt[:, :, 13:] = 1.0
    torch.testing.assert_close(loss(image, spoilt, weights), loss(image, target, weights))
    assert not torch.allclose(loss(image, spoilt), loss(image, target))


def test_images_smaller_than_the_window_are_refused_with_advice():
    with pytest.raises(InputError, match="ssim_share"):
        ssim_map(torch.zeros(3, 10, 30), torch.zeros(3, 10, 30))


@pytest.mark.parametrize("settings", [{"l2_share": -0.1}, {"ssim_share": 1.5}])
def test_shares_outside_of_0_to_1_are_refused(settings):
    with pytest.raises(InputError, match="share"):
        PhotometricLoss(**settings)
