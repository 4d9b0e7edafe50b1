"""A tiny backbone in float64, which some test files have one of their own in place of."""

from __future__ import annotations

import pytest
import torch

from restage.diffusion import pair_sampler, sampling
from tests.diffusion import explicit
from tests.diffusion.tiny import tiny_backbone


@pytest.fixture(scope="module")
def double_backbone():
    return tiny_backbone(dtype=torch.float64)


@pytest.fixture
def backbone(double_backbone, monkeypatch):
    """All in float64, the noise too."""
    draw = sampling.initial_noise
    for module in (sampling, pair_sampler, explicit):
        monkeypatch.setattr(module, "initial_noise", lambda shape, seeds: draw(shape, seeds).double())
    return double_backbone
