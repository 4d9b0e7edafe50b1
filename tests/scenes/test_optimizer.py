"""The optimizer against torch's Adam, on a picture that depends on every parameter of the splats in a known way."""

import copy
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.config import LearningRates, PhotometricLoss
from restage.scenes.optimizer import Exposures, SplatOptimizer, Targets
from restage.scenes.splats import Splats
from tests.scenes.ball import equal

SIZE, NUM_VIEWS, COUNT = 12, 3, 5
RATES = LearningRates(means=3e-3, log_scales=2e-2, rotations=4e-3, opacity_logits=6e-2, sh=1e-2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_splats(count=COUNT, *, seed=0) -> Splats:
    return Splats(
        draw(count, 3, seed=seed),
        draw(count, 3, seed=seed + 1),
        draw(count, 4, seed=seed + 2),
        draw(count, seed=seed + 3),
        draw(count, 4, 3, seed=seed + 4),
    )


def make_cameras(count=NUM_VIEWS, width=SIZE) -> Cameras:
    intrinsics = intrinsics_from_fov(0.9, width, SIZE).expand(count, 3, 3).contiguous()
    return Cameras(orbit(count, 2.0, height=0.5), intrinsics, width, SIZE)


def make_targets(weights=None) -> Targets:
    return Targets(make_cameras(), draw(NUM_VIEWS, 3, SIZE, SIZE, seed=9).sigmoid(), weights)


def paint(splats: Splats, cameras: Cameras, **options) -> Any:
    """Stands in for a rasterizer: each parameter moves all pixels, each splat and each view in a way of its own."""
    values = torch.cat([p.reshape(len(splats), -1) for p in splats.parameters().values()], dim=1)
    shares = draw(3 * SIZE * SIZE, values.numel(), seed=round(1000 * float(cameras.positions[0, 0]))) / 8
    return SimpleNamespace(color=(shares @ values.flatten()).sigmoid().reshape(3, SIZE, SIZE))


def paint_colors(splats: Splats, cameras: Cameras, **options) -> Any:
    """A picture that depends on colours alone."""
    return SimpleNamespace(color=splats.sh.mean(dim=(0, 1))[:, None, None].expand(3, SIZE, SIZE))


def optimizer_of(splats: Splats, **options) -> SplatOptimizer:
    return SplatOptimizer(splats, RATES, **{"rasterizer": paint, **options})


def adam_of(splats: Splats, *, means: float, others: float):
    """Torch's Adam on the same parameters; colours of higher degree are a group of their own."""
    leaves = {name: tensor.clone() for name, tensor in splats.parameters().items()}
    leaves["sh"], leaves["higher"] = leaves["sh"][:, :1], leaves["sh"][:, 1:]
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    rates = {name: getattr(RATES, name) * others for name in leaves if name != "higher"}
    rates |= {"means": RATES.means * means, "higher": rates["sh"] / 20}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    return leaves, torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-15)


def splats_of(leaves) -> Splats:
    own = {name: leaf for name, leaf in leaves.items() if name not in ("sh", "higher")}
    return Splats(**own, sh=torch.cat([leaves["sh"], leaves["higher"]], dim=1))


def test_steps_are_those_of_torch_adam_with_higher_degrees_at_a_twentieth():
    start, weights = make_splats(), draw(NUM_VIEWS, SIZE, SIZE, seed=5).abs()
    targets, loss = make_targets(weights), PhotometricLoss(l2_share=0.3)
    ours = optimizer_of(start, scene_size=2.5, loss=loss)
    leaves, theirs = adam_of(start, means=2.5 * 0.7, others=0.4)
    for step in range(25):
        view, splats = step % NUM_VIEWS, splats_of(leaves)
        theirs.zero_grad()
        expected = loss(paint(splats, targets.cameras[view]).color, targets.images[view], weights[view])
        expected.backward()
        theirs.step()
        found = ours.step(targets, view, decay=0.7, other_decay=0.4)
        assert found == pytest.approx(float(expected.detach()), abs=1e-6)
    for name, tensor in splats_of(leaves).parameters().items():
        torch.testing.assert_close(ours.splats.parameters()[name], tensor.detach(), rtol=0, atol=2e-5)
        assert not torch.allclose(tensor, start.parameters()[name], atol=1e-3)
    assert ours.num_updates == 25


def test_descending_an_objective_is_the_same_step_at_full_rates():
    start, cameras = make_splats(), make_cameras(1)
    ours = optimizer_of(start)
    leaves, theirs = adam_of(start, means=1.0, others=1.0)
    for _ in range(3):
        theirs.zero_grad()
        expected = paint(splats_of(leaves), cameras).color.square().sum()
        expected.backward()
        theirs.step()
        assert ours.descend(cameras, lambda color: color.square().sum()) == pytest.approx(float(expected.detach()))
    for name, tensor in splats_of(leaves).parameters().items():
        torch.testing.assert_close(ours.splats.parameters()[name], tensor.detach(), rtol=0, atol=2e-5)


def test_parameters_that_the_picture_does_not_depend_on_and_groups_without_a_rate_stay():
    start, frozen = make_splats(), dataclasses.replace(RATES, sh=0.0)
    optimizer = optimizer_of(start, rasterizer=paint_colors)
    optimizer.step(make_targets(), 0)
    optimizer.descend(make_cameras(1), lambda color: color.sum())
    assert all(torch.equal(optimizer.splats.parameters()[n], p) for n, p in start.parameters().items() if n != "sh")
    assert not torch.equal(optimizer.splats.sh, start.sh)
    still = SplatOptimizer(start, frozen, rasterizer=paint_colors)
    still.step(make_targets(), 0)
    assert equal(still.splats, start)


def moved(optimizer: SplatOptimizer, start: Splats, name: str) -> torch.Tensor:
    """How far each splat's first step goes, in learning rates: Adam's first step is the rate itself."""
    optimizer.step(make_targets(), 0)
    change = optimizer.splats.parameters()[name] - start.parameters()[name]
    return change.abs().reshape(len(start), -1).mean(dim=1) / getattr(RATES, name)


def test_centres_move_in_proportion_to_their_distance_from_the_middle_within_reach():
    start, center = make_splats(), torch.tensor([1.0, -2.0, 0.5])
    distances = torch.tensor([0.02, 0.4, 1.0, 6.0, 90.0])  # in scene sizes of 2
    directions = torch.nn.functional.normalize(draw(COUNT, 3, seed=7), dim=1)
    start = dataclasses.replace(start, means=center + 2.0 * distances[:, None] * directions)
    steps = moved(optimizer_of(start, scene_size=2.0, center=center), start, "means")
    torch.testing.assert_close(steps, 2.0 * torch.tensor([0.1, 0.4, 1.0, 6.0, 10.0]), rtol=1e-2, atol=0)
    others = moved(optimizer_of(start, scene_size=2.0, center=center), start, "log_scales")
    torch.testing.assert_close(others, torch.ones(COUNT), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["means", "log_scales", "opacity_logits"])
def test_a_splat_takes_its_share_of_a_step_and_none_without_one(name):
    start, trainable = make_splats(), torch.tensor([0.0, 0.25, 0.5, 1.0, 0.0])
    optimizer = optimizer_of(start, trainable=trainable)
    torch.testing.assert_close(moved(optimizer, start, name), trainable, rtol=1e-3, atol=1e-6)
    assert equal(optimizer.splats[trainable == 0], start[trainable == 0])


def test_a_frozen_splat_stays_though_its_gradient_is_not_a_number():
    def spoilt(splats, cameras, **options) -> Any:
        return SimpleNamespace(color=paint(splats, cameras).color + (splats.means[0] * math.nan).sum())

    start = make_splats()
    optimizer = optimizer_of(start, rasterizer=spoilt, trainable=torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))
    optimizer.step(make_targets(), 0)
    assert torch.equal(optimizer.splats.means[0], start.means[0])


def test_exposures_move_along_with_the_splats_and_are_held_near_the_identity():
    targets, exposures = make_targets(), Exposures(NUM_VIEWS)
    optimizer = optimizer_of(make_splats(), exposures=exposures)
    plain = optimizer_of(make_splats())
    assert optimizer.step(targets, 1, other_decay=0.5) == plain.step(targets, 1)  # the first transform is the identity
    is_moved = [not torch.allclose(transform, torch.eye(3, 4)) for transform in exposures.transforms]
    assert is_moved == [True] * NUM_VIEWS  # one moves, and the mean is held
    assert float((exposures.transforms[1] - exposures.transforms[0]).abs().max()) == pytest.approx(
        0.5 * exposures.rate, rel=1e-3
    )
    assert exposures.num_updates.tolist() == [0, 1, 0]
    far, near = Exposures(NUM_VIEWS, pull=0.0), Exposures(NUM_VIEWS, pull=100.0)
    for held in (far, near):
        held.transforms += 0.5 * draw(NUM_VIEWS, 3, 4, seed=3)
        before = (held.transforms[0] - torch.eye(3, 4)).square().sum()
        optimizer_of(make_splats(), exposures=held).step(targets, 0)
        held.num_updates += before - (held.transforms[0] - torch.eye(3, 4)).square().sum()
    assert near.num_updates[0] > far.num_updates[0]


def test_splats_that_are_dropped_take_their_moments_along():
    optimizer = optimizer_of(make_splats(), trainable=torch.linspace(0.2, 1.0, COUNT))
    optimizer.step(make_targets(), 0)
    before = {name: (first.clone(), second.clone()) for name, (first, second) in optimizer.moments.items()}
    kept = torch.tensor([3, 1])
    optimizer.keep(kept)
    assert optimizer.trainable is not None and optimizer.trainable.tolist() == pytest.approx([0.8, 0.4])
    for name, moments in optimizer.moments.items():
        for now, then in zip(moments, before[name], strict=True):
            assert torch.equal(now, then[kept]) and now.any()
    optimizer.step(make_targets(), 1)
    free = optimizer_of(make_splats())
    free.keep(torch.tensor([True, False, True, False, False]))
    assert free.trainable is None and len(free.splats) == 2


@pytest.mark.parametrize("has_exposures", [False, True])
def test_a_saved_optimizer_goes_on_as_if_it_had_not_stopped(has_exposures):
    def fresh(splats):
        exposures = Exposures(NUM_VIEWS) if has_exposures else None
        return optimizer_of(splats, trainable=torch.ones(COUNT), exposures=exposures)

    whole, resumed = fresh(make_splats()), fresh(make_splats(seed=50))
    whole.keep(torch.arange(COUNT - 1))
    for step in range(4):
        whole.step(make_targets(), step % 2)
        if step == 1:
            stored = {n: v for n, v in whole.state().items() if n != "exposures"}
            state = {**stored, "exposures": whole.exposures.state() if whole.exposures else None}
            assert (whole.state()["exposures"] is not None) == has_exposures
            resumed.load_state(copy.deepcopy(state))
    for step in (2, 3):
        resumed.step(make_targets(), step % 2)
    assert equal(whole.splats, resumed.splats) and resumed.num_updates == 4
    assert resumed.trainable is not None and len(resumed.trainable) == COUNT - 1
    if whole.exposures and resumed.exposures:
        assert torch.equal(whole.exposures.transforms, resumed.exposures.transforms)


def test_an_optimizer_goes_on_with_the_moments_it_is_given_and_never_changes_the_splats_it_got():
    start = make_splats()
    first = optimizer_of(start)
    first.step(make_targets(), 0)
    assert equal(start, make_splats())
    second = optimizer_of(first.splats, moments=first.moments, num_updates=first.num_updates)
    first.step(make_targets(), 1)
    assert not equal(second.splats, first.splats) and second.moments is first.moments


def test_targets_are_copies_that_can_be_replaced_one_by_one():
    images, weights = draw(NUM_VIEWS, 3, SIZE, SIZE).sigmoid(), torch.rand(NUM_VIEWS, SIZE, SIZE)
    targets = Targets(make_cameras(), images, weights)
    image, weight = images[0].clone(), weights[0].clone()
    images.zero_()
    weights.zero_()
    assert torch.equal(targets.images[0], image) and targets.weights is not None
    assert torch.equal(targets.weights[0], weight) and len(targets) == NUM_VIEWS
    targets.replace(1, image)
    assert torch.equal(targets.images[1], image) and targets.weights[1].any()
    plain = make_targets()
    before = plain.images.clone()
    plain.replace(1, image)
    assert plain.weights is None
    plain.replace(2, image, weights=weight)
    assert plain.weights is not None and torch.equal(plain.weights[2], weight) and bool((plain.weights[:2] == 1).all())
    assert torch.equal(plain.images[0], before[0]) and torch.equal(plain.images[2], image)


def test_halved_targets_are_means_of_what_each_pixel_covers_and_never_smaller_than_a_pixel():
    weights = torch.rand(NUM_VIEWS, SIZE, 1)
    thin = Targets(make_cameras(width=1), torch.rand(NUM_VIEWS, 3, SIZE, 1), weights)
    halved = thin.halved()
    assert (halved.cameras.height, halved.cameras.width) == (SIZE // 2, 1) and halved.weights is not None
    torch.testing.assert_close(halved.images[2, :, 1], thin.images[2, :, 2:4].mean(dim=1))
    torch.testing.assert_close(halved.weights[2, 1], weights[2, 2:4].mean(dim=0))
    assert make_targets().halved().weights is None


@pytest.mark.parametrize("shape", [(NUM_VIEWS, 3, SIZE, SIZE + 1), (NUM_VIEWS - 1, 3, SIZE, SIZE)])
def test_targets_that_do_not_fit_the_cameras_are_refused(shape):
    with pytest.raises(InputError, match=rf"\({NUM_VIEWS}, 3, {SIZE}, {SIZE}\), got"):
        Targets(make_cameras(), torch.zeros(shape))


def test_settings_out_of_range_are_refused():
    no_views = Cameras(torch.zeros(0, 4, 4), torch.zeros(0, 3, 3), SIZE, SIZE)
    with pytest.raises(InputError, match="targets"):
        Targets(no_views, torch.zeros(0, 3, SIZE, SIZE))
    with pytest.raises(InputError, match=f"{COUNT} values in trainable"):
        optimizer_of(make_splats(), trainable=torch.ones(COUNT + 1))
    for rate in (-1e-9, 10.0, math.nan):
        with pytest.raises(InputError, match="opacity_logits"):
            LearningRates(opacity_logits=rate)
    assert LearningRates(means=0.0, sh=9.99).means == 0
