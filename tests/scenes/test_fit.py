"""Fitting and refining: it learns, repeats itself, resumes, and leaves alone what it must."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import tyro

from restage.records import InputError, content_id
from restage.scenes.cameras import project_points
from restage.scenes.capture import Capture
from restage.scenes.config import PHOTOGRAPHS, FitConfig, LearningRates, PhotometricLoss, RefineConfig, for_size
from restage.scenes.fit import SplatFit, Targets, fit_splats, is_floating, psnr, refine_splats, render_views, view_at
from restage.scenes.initial import initial_splats, surroundings_of
from restage.scenes.optimizer import SplatOptimizer
from restage.scenes.splats import SH_C0, Splats
from tests.scenes.ball import SIZE, ball_capture, ball_of_splats, equal, ring

SMALL = FitConfig(steps=30, num_splats=150, cull_every=10, seed=3)


@pytest.fixture(scope="module")
def capture() -> Capture:
    return ball_capture()


def run(steps):
    return list(steps)[-1]


def test_a_fit_gets_closer_on_held_out_views(capture):
    held_out = list(capture.held_out_indices)
    config = FitConfig(steps=150, num_splats=120, shell_share=0.0)
    start = initial_splats(capture, 120, sh_degree=0, shell_share=0.0, seed=0)
    before = psnr(render_views(start, capture.cameras[held_out]), capture.images[held_out]).mean()
    last = run(fit_splats(capture, config))
    after = psnr(render_views(last.splats, capture.cameras[held_out]), capture.images[held_out]).mean()
    assert last.step == last.num_steps == 150
    assert float(after) > float(before) + 5


def test_held_out_views_do_not_influence_a_fit(capture):
    images = capture.images.clone()
    images[list(capture.held_out_indices)] = 1.0
    other = Capture(**{**vars(capture), "images": images})
    assert equal(run(fit_splats(capture, SMALL)).splats, run(fit_splats(other, SMALL)).splats)


def test_the_seed_decides_the_fit(capture):
    first = run(fit_splats(capture, SMALL)).splats
    assert equal(first, run(fit_splats(capture, SMALL)).splats)
    assert not torch.equal(
        first.means[:5], run(fit_splats(capture, FitConfig(steps=30, num_splats=150, seed=4))).splats.means[:5]
    )


def test_a_fit_without_points_starts_where_the_cameras_look(capture):
    bare = Capture(**{**vars(capture), "points": torch.zeros(0, 3), "point_colors": torch.zeros(0, 3)})
    splats = initial_splats(bare, 60, sh_degree=1, shell_share=0.5, seed=0)
    assert len(splats) == 60
    assert tuple(splats.sh.shape) == (60, 4, 3)
    distances = (splats.means - surroundings_of(bare.cameras).center).norm(dim=1)
    assert float(distances[:30].max()) < 6
    assert float(distances[30:].min()) > 8


def test_splats_beyond_the_sparse_points_lie_between_them(capture):
    splats = initial_splats(capture, 300, sh_degree=0, shell_share=0.0, seed=0)
    distances = torch.cdist(splats.means, capture.points)
    assert len(splats) == 300
    assert float(distances[:80].min(dim=1).values.max()) < 1e-3
    assert float(distances[80:].min(dim=1).values.max()) < 0.25
    assert 0.02 < float(distances[80:].min(dim=1).values.mean())
    assert equal(splats, initial_splats(capture, 300, sh_degree=0, shell_share=0.0, seed=0))


def test_splats_between_sparse_points_go_where_those_leave_most_of_a_picture_bare(capture):
    grid = torch.linspace(-0.1, 0.1, 7)
    dense = torch.cartesian_prod(grid, grid, torch.zeros(1))
    wide = 4 * torch.cartesian_prod(grid, grid, torch.zeros(1)) + torch.tensor([1.0, 0, 0])
    points = torch.cat([dense, wide])
    uneven = replace(capture, points=points, point_colors=torch.full_like(points, 0.5))
    splats = initial_splats(uneven, 598, sh_degree=0, shell_share=0.0, seed=0)
    between = splats.means[len(points) :]
    num_wide = int((between[:, 0] > 0.5).sum())
    assert len(between) == 500
    assert num_wide > 0.85 * 500  # spacing is 4 times as wide: 16 in 17


def test_the_scale_of_splats_at_the_start_is_a_share_of_their_spacing(capture):
    wide, narrow = (
        initial_splats(capture, 80, sh_degree=0, shell_share=0.0, scale_share=share, seed=0) for share in (1.0, 0.5)
    )
    torch.testing.assert_close(narrow.log_scales, wide.log_scales + math.log(0.5))


def test_far_splats_move_faster_in_proportion_to_their_distance(capture):
    targets = Targets(capture.cameras, capture.images)
    start = ball_of_splats()
    start.means[0] *= 0.5
    center = torch.zeros(3)
    optimizer = SplatOptimizer(start, LearningRates(), scene_size=2.0, center=center)
    optimizer.step(targets, 0)
    moves = (optimizer.splats.means - start.means).abs().amax(dim=1)
    assert float(moves[0]) == pytest.approx(2e-3 * 2.0 * 0.3 / 2.0, rel=1e-3)
    assert float(moves[1:].max()) == pytest.approx(2e-3 * 2.0 * 0.6 / 2.0, rel=1e-3)


def test_the_surroundings_of_a_ring_are_its_middle():
    found = surroundings_of(ring(6))
    torch.testing.assert_close(found.center, torch.zeros(3), atol=0.05, rtol=0)
    assert found.size == pytest.approx(math.hypot(2.2, 0.8), rel=0.05)


def test_splats_right_before_a_camera_are_floaters():
    cameras = ring(4)
    position = cameras.camera_to_world[0, :3, 3] + 0.2 * cameras.camera_to_world[0, :3, 2]
    splats = ball_of_splats(3)
    splats.means[1] = position
    splats.opacity_logits[2] = -9.0
    floats = is_floating(splats, cameras, surroundings_of(cameras), 0.25)
    assert floats.tolist() == [False, True, True]


def test_every_pass_sees_every_view_once_in_another_order():
    passes = [tuple(view_at(1, 10 * turn + step, 10) for step in range(10)) for turn in range(3)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len(set(passes)) == 3


def test_frozen_splats_and_frozen_groups_stay_bit_for_bit(capture):
    splats = ball_of_splats()
    trainable = (torch.arange(len(splats)) % 2).float()
    config = RefineConfig(steps=10, rates=LearningRates(log_scales=0.0))
    last = run(refine_splats(splats, Targets(capture.cameras, 1 - capture.images), config=config, trainable=trainable))
    assert equal(last.splats[0::2], splats[0::2])
    assert torch.equal(last.splats.log_scales, splats.log_scales)
    assert not torch.equal(last.splats.sh[1::2], splats.sh[1::2])
    assert equal(splats, ball_of_splats())


def test_pixels_without_weight_pull_nothing(capture):
    weights = torch.zeros(8, SIZE, SIZE)
    splats = ball_of_splats()
    targets = Targets(capture.cameras, 1 - capture.images, weights)
    assert equal(run(refine_splats(splats, targets, config=RefineConfig(steps=3))).splats, splats)


def test_targets_replaced_in_between_take_effect(capture):
    def refined(replace: bool) -> Splats:
        targets = Targets(capture.cameras, capture.images)
        last = None
        for last in refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=9)):
            if replace and last.step == 1:
                for view in range(8):
                    targets.replace(view, 1 - capture.images[view], weights=torch.full((SIZE, SIZE), 0.5))
        assert last is not None
        return last.splats

    assert not equal(refined(True), refined(False))
    assert equal(refined(False), refined(False))


def test_refining_in_segments_equals_refining_at_once(capture):
    targets = Targets(capture.cameras, 1 - capture.images)
    whole = run(refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=12))).splats
    optimizer = SplatOptimizer(ball_of_splats(), RefineConfig().rates, scene_size=surroundings_of(capture.cameras).size)
    for _ in range(3):
        part = run(refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=4), optimizer=optimizer)).splats
    assert equal(whole, part)


def test_with_a_cooldown_steps_grow_smaller_at_the_end_only(capture):
    targets = Targets(capture.cameras, 1 - capture.images)

    def moves(share: float) -> list[float]:
        config = RefineConfig(steps=8, cooldown_share=share)
        colors = [ball_of_splats().sh]
        colors += [step.splats.sh.clone() for step in refine_splats(ball_of_splats(), targets, config=config)]
        return [float((after - before).abs().mean()) for before, after in itertools.pairwise(colors)]

    plain, cooled = moves(0.0), moves(0.5)
    assert cooled[:5] == plain[:5]
    shares = [b / a for a, b in zip(plain[5:], cooled[5:], strict=True)]
    assert shares == pytest.approx([0.75, 0.5, 0.25], abs=0.1)
    with pytest.raises(InputError, match="cooldown_share"):
        RefineConfig(cooldown_share=-0.1)


def test_psnr_has_its_closed_form():
    truth = torch.zeros(2, 3, 4, 4)
    assert psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert math.isinf(float(psnr(truth, truth)[0]))


def test_a_saved_fit_goes_on_with_its_moments(capture):
    whole = SplatFit(capture, SMALL)
    for _ in range(6):
        whole.step()
    half = SplatFit(capture, SMALL)
    for _ in range(3):
        half.step()
    resumed = SplatFit(capture, SMALL)
    resumed.load_state(half.state())
    for _ in range(3):
        resumed.step()
    assert equal(whole.optimizer.splats, resumed.optimizer.splats)


def test_weights_choose_what_psnr_is_taken_of():
    truth = torch.zeros(1, 3, 4, 4)
    images = truth.clone()
    images[..., 2:] = 0.1
    weights = torch.zeros(1, 4, 4)
    weights[..., 2:] = 0.5
    assert psnr(images, truth, weights).tolist() == pytest.approx([20.0], abs=1e-4)
    assert math.isinf(float(psnr(images, truth, 0.5 - weights)[0]))


def test_pixels_that_a_mask_leaves_out_do_not_influence_a_fit(capture):
    masks = torch.ones(8, SIZE, SIZE)
    masks[:, :, :10] = 0.0
    spoilt = capture.images.clone()
    spoilt[:, :, :, :10] = 1.0
    bare = {"points": torch.zeros(0, 3), "point_colors": torch.zeros(0, 3)}
    start = initial_splats(Capture(**{**vars(capture), **bare}), 100, sh_degree=0, shell_share=0.0, seed=0)
    config = FitConfig(steps=8)
    first, second, unmasked = (
        run(fit_splats(Capture(**{**vars(capture), "images": images, "masks": chosen}), config, start)).splats
        for images, chosen in ((capture.images, masks), (spoilt, masks), (spoilt, None))
    )
    assert equal(first, second)
    assert not equal(first, unmasked)


def test_no_splat_starts_with_the_color_of_a_pixel_that_does_not_count(capture):
    masks, images, purple = torch.ones(8, SIZE, SIZE), capture.images.clone(), torch.tensor([0.9, 0.1, 0.8])
    masks[:, :, :10], images[:, :, :, :10] = 0.0, purple[:, None, None]
    bare = {"points": torch.zeros(0, 3), "point_colors": torch.zeros(0, 3), "images": images}
    for chosen, is_purple in ((masks, False), (None, True)):
        spoilt = Capture(**{**vars(capture), **bare, "masks": chosen})
        start = initial_splats(spoilt, 400, sh_degree=0, shell_share=0.5, seed=0)
        found = torch.isclose(0.5 + SH_C0 * start.sh[:, 0], purple, atol=1e-4).all(dim=1)
        assert len(start) == 400 and bool(found.any()) is is_purple


def test_half_size_targets_show_the_same_through_the_same_cameras(capture):
    targets = Targets(capture.cameras, capture.images, torch.ones(8, SIZE, SIZE)).halved()
    assert tuple(targets.images.shape) == (8, 3, 12, 12)
    torch.testing.assert_close(targets.images[0, :, 3, 4], capture.images[0, :, 6:8, 8:10].mean(dim=(1, 2)))
    point = torch.tensor([[0.3, -0.2, 0.4]])
    whole = project_points(point, capture.cameras[2]).pixels
    torch.testing.assert_close(project_points(point, targets.cameras[2]).pixels, whole / 2)


def test_a_fit_that_starts_at_half_the_size_gets_as_close(capture):
    held_out = list(capture.held_out_indices)
    config = FitConfig(steps=120, num_splats=120, shell_share=0.0)
    plain, coarse = (
        psnr(render_views(run(fit_splats(capture, chosen)).splats, capture.cameras[held_out]), capture.images[held_out])
        for chosen in (config, replace(config, coarse_share=0.4))
    )
    assert not torch.equal(plain, coarse)
    assert float(coarse.mean()) > float(plain.mean()) - 3


def test_the_first_steps_of_a_fit_see_a_quarter_then_half_of_the_size(capture):
    fit = SplatFit(
        capture, FitConfig(steps=10, num_splats=50, quarter_share=0.2, coarse_share=0.5, loss=PhotometricLoss())
    )
    widths = []
    step = fit.optimizer.step

    def counted(targets, view, **options):
        widths.append(targets.cameras.width)
        return step(targets, view, **options)

    fit.optimizer.step = counted
    while not fit.is_done:
        fit.step()
    assert widths == [SIZE // 4] * 2 + [SIZE // 2] * 3 + [SIZE] * 5


def test_all_rates_fall_to_zero_over_the_cooldown(capture):
    config = FitConfig(steps=10, num_splats=50, means_decay=1.0)
    factors = {}
    for share in (0.0, 0.4):
        fit = SplatFit(capture, replace(config, cooldown_share=share))
        step, found = fit.optimizer.step, factors.setdefault(share, [])

        def noted(targets, view, step=step, found=found, **options):
            found.append((options["decay"], options["other_decay"]))
            return step(targets, view, **options)

        fit.optimizer.step = noted
        while not fit.is_done:
            fit.step()
    assert factors[0.0] == [(1.0, 1.0)] * 10
    assert factors[0.4] == [pytest.approx((left, left)) for left in [1.0] * 7 + [0.75, 0.5, 0.25]]


def test_settings_follow_the_size_of_photographs_where_they_are_not_given():
    assert for_size(PHOTOGRAPHS, 160) == PHOTOGRAPHS
    sides = (256, 512, 1000, 4000)
    found = [for_size(PHOTOGRAPHS, side) for side in sides]
    counts = [config.num_splats for config in found]
    assert counts == sorted(counts) and counts[0] > PHOTOGRAPHS.num_splats
    assert all(config.steps > PHOTOGRAPHS.steps and config.cooldown_share for config in found)
    assert all(0 < config.quarter_share < config.coarse_share < 0.8 for config in found)
    given = for_size(replace(PHOTOGRAPHS, steps=300, sh_degree=1, coarse_share=0.1), 512)
    assert (given.steps, given.sh_degree, given.coarse_share) == (300, 1, 0.1)
    assert given.num_splats == found[1].num_splats


def test_ids_of_fits_from_before_these_settings_stay():
    assert content_id("fit", FitConfig()) == "fit-ff976795541369ad"
    assert content_id("fit", PHOTOGRAPHS) == "fit-47d3f2ca9401a1cc"
    assert content_id("fit", FitConfig(cooldown_share=0.1)) != content_id("fit", FitConfig())


def test_a_fit_whose_loss_has_levelled_off_ends_early(capture):
    still = LearningRates(means=0.0, log_scales=0.0, rotations=0.0, opacity_logits=0.0, sh=0.0)
    steps = list(fit_splats(capture, FitConfig(steps=200, num_splats=50, rates=still, stop_gain=0.01)))
    assert len(steps) == 36  # two times three passes through six views
    assert len(list(fit_splats(capture, FitConfig(steps=40, num_splats=50, rates=still)))) == 40


def test_a_time_budget_ends_a_fit_with_its_learning_rates_fallen(capture):
    fit = SplatFit(capture, FitConfig(steps=1_000_000, num_splats=50, time_budget_s=5.0))
    seconds = iter(range(100))
    fit.schedule.clock = lambda: float(next(seconds))
    while not fit.is_done:
        last = fit.step()
    assert last.step == 6  # the first one, which may compile kernels, is free
    assert fit.schedule.share == 1.0


def test_every_choice_of_a_fit_is_a_flag_of_the_command_line():
    flags = "--time-budget 5 --loss.ssim-share 0 --fits-exposure --stop-gain 0.01"
    config = tyro.cli(FitConfig, args=[*flags.split(), "--rates.means", "0.001"])
    assert config == FitConfig(
        time_budget_s=5.0,
        loss=PhotometricLoss(ssim_share=0.0),
        fits_exposure=True,
        stop_gain=0.01,
        rates=LearningRates(means=1e-3),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"sh_degree": 4},
        {"near_share": 2.0},
        {"num_splats": -1},
        {"time_budget_s": 0.0},
        {"other_decay": 0.0},
        {"quarter_share": 1.5},
        {"cooldown_share": -0.1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        FitConfig(**settings)
    with pytest.raises(InputError):
        LearningRates(means=-1.0)
