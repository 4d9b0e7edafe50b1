"""Densification: shared splats look like the one they replace, the number is bounded, draws repeat."""

import math
from dataclasses import replace

import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at
from restage.scenes.densify import MonteCarlo, share_splats
from restage.scenes.fit import render_views
from restage.scenes.optimizer import LearningRates, SplatOptimizer
from restage.scenes.splats import Splats

CALM = MonteCarlo(growth=0.0)


def published_share(opacity: float, copies: int) -> tuple[float, float]:
    """Opacity and factor on the scale as the published code computes them: two nested loops over binomials."""
    new = 1 - (1 - opacity) ** (1 / copies)
    total = 0.0
    for i in range(1, copies + 1):
        for k in range(i):
            total += math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
    return new, opacity / total


def some_splats(count: int = 40, opacity: float = 0.7) -> Splats:
    generator = torch.Generator().manual_seed(1)
    return Splats(
        means=torch.rand(count, 3, generator=generator) - 0.5,
        log_scales=torch.rand(count, 3, generator=generator) - 2.5,
        rotations=torch.randn(count, 4, generator=generator),
        opacity_logits=torch.full((count,), opacity).logit(),
        sh=torch.rand(count, 1, 3, generator=generator),
    )


def optimizer_of(splats: Splats) -> SplatOptimizer:
    optimizer = SplatOptimizer(splats, LearningRates())
    for first, second in optimizer.moments.values():
        first.fill_(1.0)
        second.fill_(2.0)
    return optimizer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def front_camera(size: int = 48) -> Cameras:
    eye = torch.tensor([0.0, -2.0, 0.0])
    return Cameras(look_at(eye, torch.zeros(3))[None], intrinsics_from_fov(0.8, size, size)[None], size, size)


def nobody(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20, 51])
@pytest.mark.parametrize("opacity", [0.006, 0.3, 0.9, 0.999])
def test_shared_splats_follow_the_published_formula(opacity, copies):
    new, factor = published_share(opacity, copies)
    shared = share_splats(torch.tensor([opacity]), torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([copies]))
    assert float(shared.opacities) == pytest.approx(new, rel=1e-4)
    torch.testing.assert_close(shared.scales, torch.tensor([[1.0, 2.0, 0.5]]) * factor, rtol=1e-4, atol=0)


def test_more_copies_than_the_published_bound_count_as_the_bound():
    many, most = (share_splats(torch.tensor([0.5]), torch.ones(1, 3), torch.tensor([n])) for n in (80, 51))
    assert torch.equal(many.opacities, most.opacities)


@pytest.mark.parametrize("copies", [2, 5])
def test_shared_splats_cover_as_much_along_a_line_as_the_one_they_replace(copies):
    opacity = 0.8
    shared = share_splats(torch.tensor([opacity]), torch.ones(1, 3), torch.tensor([copies]))
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    one = opacity * torch.exp(-0.5 * x**2)
    each = float(shared.opacities) * torch.exp(-0.5 * (x / float(shared.scales[0, 0])) ** 2)
    together = 1 - (1 - each) ** copies
    assert float(together.sum()) == pytest.approx(float(one.sum()), rel=1e-4)
    assert float((together - one).abs().max()) < 0.12


def test_relocation_hardly_changes_the_picture_but_moves_all_dead_splats():
    splats = some_splats()
    splats.opacity_logits[30:] = -8.0
    optimizer = optimizer_of(splats)
    before = render_views(splats, front_camera())
    CALM.relocate(optimizer, nobody(40), max_splats=40, generator=seeded())
    after = render_views(optimizer.splats, front_camera())
    assert len(optimizer.splats) == 40
    assert float(torch.sigmoid(optimizer.splats.opacity_logits).min()) > 0.05
    moved = (optimizer.splats.means != splats.means).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == list(range(30, 40))
    assert float((after - before).abs().mean()) < 0.01
    naive = optimizer_of(splats)
    for tensor in naive.splats.parameters().values():
        tensor[30:] = tensor[:10]
    assert float((render_views(naive.splats, front_camera()) - before).abs().mean()) > 0.02


def test_relocated_splats_and_their_sources_forget_their_moments_and_no_others():
    splats = some_splats()
    splats.opacity_logits[37:] = -8.0
    optimizer = optimizer_of(splats)
    CALM.relocate(optimizer, nobody(40), max_splats=40, generator=seeded())
    first, second = optimizer.moments["means"]
    touched = (optimizer.splats.opacity_logits != splats.opacity_logits).nonzero()[:, 0].tolist()
    assert 4 <= len(touched) <= 6
    assert set(range(37, 40)) < set(touched)
    assert (first == 0).all(dim=1).nonzero()[:, 0].tolist() == touched
    assert (second == 0).all(dim=1).nonzero()[:, 0].tolist() == touched


def test_splats_named_as_dead_are_moved_too():
    is_dead = nobody(40)
    is_dead[5] = True
    optimizer = optimizer_of(some_splats())
    CALM.relocate(optimizer, is_dead, max_splats=40, generator=seeded())
    assert not torch.equal(optimizer.splats.means[5], some_splats().means[5])
    assert torch.equal(optimizer.splats.means[6:], some_splats().means[6:])


def test_new_splats_are_added_up_to_the_bound():
    optimizer = optimizer_of(some_splats())
    counts = []
    for turn in range(4):
        count = len(optimizer.splats)
        MonteCarlo(growth=0.5).relocate(optimizer, nobody(count), max_splats=100, generator=seeded(turn))
        counts.append(len(optimizer.splats))
    assert counts == [60, 90, 100, 100]
    assert all(len(first) == len(second) == 100 for first, second in optimizer.moments.values())


def test_adding_hardly_changes_the_picture():
    optimizer = optimizer_of(some_splats())
    before = render_views(optimizer.splats, front_camera())
    MonteCarlo(growth=0.3).relocate(optimizer, nobody(40), max_splats=1000, generator=seeded())
    assert len(optimizer.splats) == 52
    assert float((render_views(optimizer.splats, front_camera()) - before).abs().mean()) < 0.01


def test_splats_that_are_all_dead_are_left_alone():
    optimizer = optimizer_of(some_splats(opacity=0.001))
    MonteCarlo().relocate(optimizer, nobody(40), max_splats=100, generator=seeded())
    assert torch.equal(optimizer.splats.means, some_splats().means)


def test_draws_and_moves_repeat_with_their_seed():
    def result(seed: int) -> Splats:
        splats = some_splats()
        splats.opacity_logits[20:] = torch.tensor(0.004).logit()
        optimizer = optimizer_of(splats)
        MonteCarlo().relocate(optimizer, nobody(40), max_splats=60, generator=seeded(seed))
        MonteCarlo().shake(optimizer.splats, 1e-3, generator=seeded(seed))
        return optimizer.splats

    assert torch.equal(result(1).means, result(1).means)
    assert not torch.equal(result(1).means, result(2).means)


def test_only_faint_splats_are_moved_at_random_and_along_their_covariance():
    splats = some_splats(3000, opacity=0.5)
    splats.means.zero_()
    splats.log_scales[:] = torch.tensor([-1.0, -2.0, -3.0])
    splats.rotations[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    splats.opacity_logits[1000:] = torch.tensor(0.005).logit()
    replace(CALM, noise=1e3).shake(splats, 1e-3, generator=seeded())
    assert not splats.means[:1000].any()
    expected = 0.5 * torch.tensor([-1.0, -2.0, -3.0]).mul(2).exp()  # the sigmoid is one half at this opacity
    torch.testing.assert_close(splats.means[1000:].std(dim=0), expected, rtol=0.06, atol=0)


def test_a_penalty_pulls_opacity_and_scale_down():
    splats = Splats(**{name: tensor.requires_grad_() for name, tensor in some_splats().parameters().items()})
    MonteCarlo().penalty(splats, scene_size=2.0).backward()
    assert splats.opacity_logits.grad is not None and splats.log_scales.grad is not None
    assert (splats.opacity_logits.grad > 0).all()
    assert (splats.log_scales.grad > 0).all()
    assert splats.means.grad is None


@pytest.mark.parametrize(
    "settings", [{"start": 0.9, "stop": 0.5}, {"every": 0}, {"min_opacity": 0.0}, {"growth": -1.0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        MonteCarlo(**settings)
