"""Exposure: a fit to views whose brightness changes gets back what held-out views look like."""

from dataclasses import replace

import pytest
import torch

from restage.scenes.config import FitConfig
from restage.scenes.fit import SplatFit, fit_splats, psnr, render_views
from restage.scenes.optimizer import Exposures
from tests.scenes.ball import ball_capture

HEIGHT = 4.0
"""From where all views see much of the same: else a colour around the ball could stand for a change of brightness."""
CONFIG = FitConfig(steps=300, num_splats=120, shell_share=0.0, other_decay=0.1)


def dimmed_capture(strength: float):
    """The ball with training views whose brightness and tint change; their mean does not. Held-out views are true."""
    capture = ball_capture(height=HEIGHT)
    train = list(capture.train_indices)
    generator = torch.Generator().manual_seed(5)
    gains = strength * (2 * torch.rand(len(train), 3, generator=generator) - 1)
    images = capture.images.clone()
    images[train] = images[train] * (1 + gains - gains.mean(0))[:, :, None, None]
    return replace(capture, images=images)


def held_out_psnr_db(capture, config: FitConfig) -> float:
    held_out = list(capture.held_out_indices)
    splats = list(fit_splats(capture, config))[-1].splats
    return float(psnr(render_views(splats, capture.cameras[held_out]), capture.images[held_out]).mean())


def test_fitted_exposures_recover_held_out_views_of_a_capture_whose_brightness_changes():
    steady = held_out_psnr_db(ball_capture(height=HEIGHT), CONFIG)
    without = held_out_psnr_db(dimmed_capture(0.4), CONFIG)
    fitted = held_out_psnr_db(dimmed_capture(0.4), replace(CONFIG, fits_exposure=True))
    assert without < steady - 2
    assert fitted > without + 0.5 * (steady - without)


def test_the_mean_transform_stays_the_identity():
    fit = SplatFit(dimmed_capture(0.4), replace(CONFIG, fits_exposure=True))
    for _ in range(12):
        fit.step()
    assert fit.optimizer.exposures is not None
    transforms = fit.optimizer.exposures.transforms
    torch.testing.assert_close(transforms.mean(0), torch.eye(3, 4), atol=1e-5, rtol=0)
    assert float((transforms - torch.eye(3, 4)).abs().max()) > 0.01


def test_a_transform_acts_on_colours_as_a_matrix_and_an_offset():
    color = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    transform = torch.cat([torch.diag(torch.tensor([0.5, 1.0, 2.0])), torch.tensor([[0.1], [0.0], [-0.2]])], dim=1)
    found = Exposures.apply(transform, color)
    expected = [0.5 * color[0] + 0.1, color[1], 2 * color[2] - 0.2]
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_penalty_is_nothing_at_the_identity_and_pulls_towards_it():
    exposures = Exposures(2, pull=0.5)
    transform = exposures.transform_of(0)
    assert float(exposures.penalty(transform).detach()) == pytest.approx(0.0)
    away = (transform + 0.1).detach().requires_grad_()
    exposures.penalty(away).backward()
    assert away.grad is not None
    torch.testing.assert_close(away.grad, torch.full((3, 4), 0.1))
