import math
from typing import Any

import pytest
import torch
from skimage.metrics import structural_similarity

from restage.compare.metrics import (
    MAX_PSNR_DB,
    depth_error,
    mask_iou,
    no_op,
    progress,
    psnr_db,
    share_moved,
    spill,
    ssim,
    wrong_way,
)


@pytest.fixture
def source() -> torch.Tensor:
    return torch.full((2, 3, 8, 8), 0.5)


@pytest.fixture
def regions() -> torch.Tensor:
    regions = torch.zeros(2, 8, 8)
    regions[:, 2:6, 2:6] = 1
    return regions


@pytest.fixture
def truth(source: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    return source + 0.4 * regions[:, None]


def test_a_perfect_edit_scores_one_without_spill(source, truth, regions):
    assert progress(truth, source, truth, regions).mean == pytest.approx(1)
    assert spill(truth, source, regions).mean == 0
    assert mask_iou(truth, source, source, truth).mean == 1
    assert psnr_db(truth, truth).mean == MAX_PSNR_DB


def test_doing_nothing_scores_zero(source, truth, regions):
    assert progress(source, source, truth, regions).mean == 0
    assert spill(source, source, regions).mean == 0
    assert mask_iou(source, source, source, truth).mean == 0


def test_going_the_wrong_way_scores_below_zero(source, truth, regions):
    wrong = source - 0.4 * regions[:, None]
    assert progress(wrong, source, truth, regions).mean == pytest.approx(-1)


def test_overshooting_by_the_whole_way_scores_like_doing_nothing(source, truth, regions):
    beyond = source + 0.8 * regions[:, None]
    assert progress(beyond, source, truth, regions).mean == pytest.approx(0, abs=1e-6)


def test_half_way_scores_half(source, truth, regions):
    assert progress((source + truth) / 2, source, truth, regions).mean == pytest.approx(0.5, abs=1e-6)


def test_spill_counts_only_what_lies_outside_the_region(source, regions):
    edited = source + 0.25 * (1 - regions[:, None]) + 0.5 * regions[:, None]
    assert spill(edited, source, regions).mean == pytest.approx(0.25)


def test_a_region_that_covers_everything_leaves_spill_unscored_with_a_reason(source):
    measured = spill(source + 0.1, source, torch.ones(2, 8, 8))
    assert math.isnan(measured.mean)
    assert measured.reason == "2 of 2 views are not scored: truth changes all of what they see"


def test_a_view_without_a_change_is_left_out_of_progress_with_a_reason(source, truth, regions):
    regions, truth = regions.clone(), truth.clone()
    regions[1], truth[1] = 0, source[1]
    measured = progress((source + truth) / 2, source, truth, regions)
    assert measured.mean == pytest.approx(0.5, abs=1e-6)
    assert math.isnan(measured.per_view[1])
    assert "1 of 2 views" in measured.reason


def test_a_region_in_which_truth_equals_the_source_is_unscored_not_infinite(source, regions):
    assert math.isnan(progress(source + 0.1, source, source, regions).mean)


def test_iou_of_a_change_twice_too_large_is_a_half(source, truth):
    edited = source.clone()
    edited[:, :, 2:6, :] += 0.2
    assert mask_iou(edited, source, source, truth).mean == pytest.approx(0.5)


def test_a_change_below_the_threshold_is_no_change(source, truth):
    assert mask_iou(source + 0.04, source, source, truth).mean == 0
    faint = truth + 0.04
    assert mask_iou(truth, source, source, faint).mean == mask_iou(faint, source, source, faint).mean == 1
    measured = mask_iou(source, source, source, source + 0.04)
    assert math.isnan(measured.mean) and "neither truth nor the edit" in measured.reason


def test_psnr_of_a_known_error(source):
    assert psnr_db(source + 0.1, source).mean == pytest.approx(20, abs=1e-4)


def test_a_perfect_view_stays_in_the_mean_of_psnr(source):
    edited = source.clone()
    edited[0] += 0.1
    assert psnr_db(edited, source).mean == pytest.approx((20 + MAX_PSNR_DB) / 2, abs=1e-3)


def test_no_views_at_all_give_nan_with_a_reason():
    none = torch.zeros(0, 3, 4, 4)
    measured = psnr_db(none, none)
    assert math.isnan(measured.mean)
    assert measured.reason == "there are no held-out views"


def test_psnr_of_a_region_does_not_see_what_lies_outside(source, truth, regions):
    edited = truth + 0.1 * regions[:, None]
    assert psnr_db(edited, truth, regions).mean == pytest.approx(20, abs=1e-4)
    assert psnr_db(edited, truth, 1 - regions).mean == MAX_PSNR_DB


def test_psnr_of_an_empty_region_is_unscored_with_a_reason(source):
    measured = psnr_db(source, source, torch.zeros(2, 8, 8))
    assert math.isnan(measured.mean)
    assert "no pixel" in measured.reason


def test_ssim_is_one_for_equal_views_and_what_scikit_image_says_for_others():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1, 3, 24, 20, generator=generator)
    options: dict[str, Any] = {
        "channel_axis": 0,
        "data_range": 1.0,
        "gaussian_weights": True,
        "sigma": 1.5,
        "truncate": 3.5,
    }
    options |= {"truncate": 3.5, "use_sample_covariance": False}
    full: Any = structural_similarity(first[0].numpy(), second[0].numpy(), full=True, **options)[1]
    assert ssim(first, first).mean == pytest.approx(1, abs=1e-6)
    assert ssim(first, second).mean == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-4)
    left = torch.zeros(1, 24, 20)
    left[:, :, :10] = 1
    assert ssim(first, second, left).mean == pytest.approx(full[:, 5:-5, 5:10].mean(), abs=1e-4)


def test_views_smaller_than_the_window_of_ssim_are_unscored_with_a_reason(source):
    assert "smaller than the window" in ssim(source, source).reason


def test_depth_error_is_relative_to_the_true_depth_and_counts_holes_in_full():
    truth = torch.full((1, 4, 4), 2.0)
    alpha = torch.ones(1, 4, 4)
    assert depth_error(truth, alpha, truth).mean == 0
    assert depth_error(truth + 0.5, alpha, truth).mean == pytest.approx(0.25)
    alpha[0, 0] = 0.1
    assert depth_error(truth, alpha, truth).mean == pytest.approx(0.25)
    edited = torch.full((1, 4, 4), math.inf)
    assert depth_error(edited, torch.ones(1, 4, 4), truth).mean == 1


def test_depth_counts_only_where_truth_shows_a_surface_in_the_region(regions):
    truth = torch.full((2, 8, 8), 2.0)
    truth[0] = math.inf
    measured = depth_error(truth.clamp(max=9) + regions, torch.ones(2, 8, 8), truth, regions)
    assert measured.mean == pytest.approx(0.5)
    assert math.isnan(measured.per_view[0])
    assert "1 of 2 views" in measured.reason


def test_an_edit_that_moves_a_twentieth_is_a_no_op_and_not_wrong(source, truth, regions):
    edited = source - 0.02 * regions[:, None]
    share = share_moved(edited, source, source, truth, regions=regions)
    assert share == pytest.approx(0.05, abs=1e-5)
    assert no_op(share, 0.1).mean == 1
    assert wrong_way(share, -0.05, 0.1).mean == 0


def test_an_edit_away_from_truth_is_flagged_as_the_wrong_way(source, truth, regions):
    edited = source - 0.2 * regions[:, None]
    share = share_moved(edited, source, source, truth, regions=regions)
    done = progress(edited, source, truth, regions).mean
    assert (no_op(share, 0.1).mean, wrong_way(share, done, 0.1).mean) == (0, 1)
    assert done == pytest.approx(-0.5, abs=1e-5)


def test_flags_are_unscored_where_truth_changes_nothing(source, regions):
    share = share_moved(source, source, source, source, regions=regions)
    assert math.isnan(no_op(share, 0.1).mean)
    assert wrong_way(share, math.nan, 0.1).reason == "truth changes nothing in the held-out views"
