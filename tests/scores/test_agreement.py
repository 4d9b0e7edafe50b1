import math

import pytest
from scipy import stats

from benchmarks.agreement import judged_results, pair_agreement, rank_agreement
from restage.records import InputError, Score


def rows(metric: str, values: dict[tuple[str, str], list[float]]) -> list[Score]:
    return [
        Score(scene=scene, edit=edit, kind="k", method=f"m{i}", editor="e", seed=0, metric=metric, value=value)
        for (scene, edit), found in values.items()
        for i, value in enumerate(found)
    ]


TRUTH = {("a", "x"): [0.1, 0.3, 0.5, 0.9], ("b", "x"): [0.0, 0.2, 0.6, 0.7]}


def test_a_metric_that_ranks_as_truth_does_agrees_fully():
    scores = rows("progress", TRUTH) + rows("clip_direction", {k: [v**3 for v in found] for k, found in TRUTH.items()})
    for within in ("all", "scene", "case"):
        found = rank_agreement(scores, "clip_direction", within=within, num_resamples=20)
        assert (found.spearman, found.kendall) == pytest.approx((1, 1))
        assert (found.spearman_low, found.spearman_high) == pytest.approx((1, 1))
    assert pair_agreement(scores, "clip_direction") == 1


def test_a_metric_that_ranks_the_other_way_round_is_minus_one():
    scores = rows("progress", TRUTH) + rows("clip_direction", {k: [-v for v in found] for k, found in TRUTH.items()})
    assert rank_agreement(scores, "clip_direction", num_resamples=5).kendall == pytest.approx(-1)
    assert pair_agreement(scores, "clip_direction") == 0


def test_less_is_better_for_spill():
    spill = rows("spill", {k: [1 - v for v in found] for k, found in TRUTH.items()})
    found = rank_agreement(spill + rows("clip_text", TRUTH), "clip_text", truth="spill", num_resamples=5)
    assert found.spearman == pytest.approx(1)


def test_ranking_over_all_is_that_of_scipy():
    metric = {("a", "x"): [0.2, 0.1, 0.5, 0.4], ("b", "x"): [0.3, 0.3, 0.2, 0.9]}
    first, second = ([value for found in table.values() for value in found] for table in (metric, TRUTH))
    found = rank_agreement(rows("progress", TRUTH) + rows("clip_text", metric), "clip_text", num_resamples=50)
    assert found.spearman == pytest.approx(stats.spearmanr(first, second)[0])
    assert found.kendall == pytest.approx(stats.kendalltau(first, second)[0])
    assert found.spearman_low <= found.spearman <= found.spearman_high


def test_cases_of_different_difficulty_do_not_hide_that_methods_are_ranked_wrongly_within_each():
    truth = {("a", "x"): [0.1, 0.2, 0.3, 0.4], ("b", "x"): [0.6, 0.7, 0.8, 0.9]}
    metric = {("a", "x"): [0.4, 0.3, 0.2, 0.1], ("b", "x"): [0.9, 0.8, 0.7, 0.6]}
    scores = rows("progress", truth) + rows("clip_text", metric)
    assert rank_agreement(scores, "clip_text", within="all", num_resamples=5).spearman > 0.4
    assert rank_agreement(scores, "clip_text", within="case", num_resamples=5).spearman == pytest.approx(-1)


def test_what_either_metric_could_not_score_is_counted_and_left_out():
    metric = {("a", "x"): [0.1, math.nan, 0.5, 0.9], ("b", "x"): [0.0, 0.2, 0.6, 0.7]}
    scores = rows("progress", TRUTH) + rows("clip_text", metric)
    results, num_missing = judged_results(scores, "clip_text")
    assert (len(results), num_missing) == (7, 1)
    found = rank_agreement(scores, "clip_text", within="scene", num_resamples=5)
    assert (found.num_results, found.num_missing) == (7, 1)


def test_a_metric_that_is_the_same_for_all_has_no_correlation():
    scores = rows("progress", TRUTH) + rows("clip_text", {k: [0.5] * 4 for k in TRUTH})
    assert math.isnan(rank_agreement(scores, "clip_text", num_resamples=5).spearman)
    assert pair_agreement(scores, "clip_text") == 0.5


def test_the_interval_is_the_same_each_time():
    scores = rows("progress", TRUTH) + rows(
        "clip_text", {("a", "x"): [3.0, 1.0, 2.0, 4.0], ("b", "x"): [1.0, 3.0, 2.0, 4.0]}
    )
    first, second = (rank_agreement(scores, "clip_text", num_resamples=30) for _ in range(2))
    assert first == second


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="unknown metric 'beauty'"):
        rank_agreement(rows("progress", TRUTH), "beauty")
