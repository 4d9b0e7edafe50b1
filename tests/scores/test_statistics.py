import math

import numpy as np
import pytest
from scipy import stats

from restage.records import InputError, Score
from restage.scores.statistics import (
    Estimate,
    clustered_estimate,
    estimate_scores,
    paired_difference,
    student_reach,
)

OURS, THEIRS = ("restage", "edit_model"), ("idu", "edit_model")


def rows(who: tuple[str, str], values: dict[str, float], *, seed: int = 0, edit: str = "e") -> list[Score]:
    fields = {"edit": edit, "kind": "recolour", "method": who[0], "editor": who[1], "seed": seed, "metric": "progress"}
    return [Score(scene=scene, value=value, **fields) for scene, value in values.items()]


def ends(found: Estimate) -> tuple[float, float]:
    return found.mean - found.reach, found.mean + found.reach


def test_the_interval_is_that_of_the_paired_t_test_where_every_scene_has_one_case():
    ours, theirs = [0.8, 0.6, 0.9, 0.4], [0.5, 0.5, 0.6, 0.5]
    names = "abcd"
    scores = rows(OURS, dict(zip(names, ours, strict=True))) + rows(THEIRS, dict(zip(names, theirs, strict=True)))
    found = paired_difference(scores, "progress", first=OURS, second=THEIRS)
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert ends(found) == pytest.approx((interval.low, interval.high))
    assert (found.num_scored, found.num_scenes) == (4, 4)


def test_another_confidence_gives_the_interval_of_the_t_test():
    ours, theirs = [0.8, 0.6, 0.9, 0.4], [0.5, 0.5, 0.6, 0.5]
    scores = rows(OURS, dict(zip("abcd", ours, strict=True))) + rows(THEIRS, dict(zip("abcd", theirs, strict=True)))
    found = paired_difference(scores, "progress", first=THEIRS, second=OURS)
    interval = stats.ttest_rel(theirs, ours).confidence_interval(0.8)
    reach = student_reach(found.standard_error, 4, confidence=0.8)
    assert (found.mean - reach, found.mean + reach) == pytest.approx((interval.low, interval.high))


def test_with_one_value_in_each_scene_the_standard_error_is_the_usual_one():
    values = [0.1, 0.4, 0.7, 0.3]
    found = clustered_estimate([*values, math.nan], "abcde")
    assert (found.mean, found.standard_error) == pytest.approx((np.mean(values), stats.sem(values)))
    assert (found.num_scored, found.num_missing) == (4, 1)


def test_values_of_one_scene_are_one_observation_of_it():
    found = clustered_estimate([1.0, 2.0, 6.0], ["a", "a", "b"])
    # The residuals' sums are -3 and 3: sqrt(2 / 1 * 18) / 3.
    assert (found.mean, found.standard_error) == (3.0, pytest.approx(2.0))
    one = clustered_estimate([1.0, 2.0], ["a", "a"])
    assert (one.mean, one.num_scored) == (1.5, 2) and math.isnan(one.standard_error)


def test_nothing_scored_gives_no_numbers_but_counts():
    for values in ([], [math.nan, math.nan]):
        found = clustered_estimate(values, ["a"] * len(values))
        assert math.isnan(found.mean) and math.isnan(found.standard_error)
        assert (found.num_scored, found.num_missing) == (0, len(values))


def test_pairing_takes_out_what_scenes_have_in_common():
    scenes = {name: float(index) for index, name in enumerate("abcdef")}
    better = {name: value + 0.1 + 0.01 * (index % 2) for index, (name, value) in enumerate(scenes.items())}
    found = paired_difference(rows(OURS, better) + rows(THEIRS, scenes), "progress", first=OURS, second=THEIRS)
    assert ends(found)[0] > 0 and found.standard_error < 0.01


def test_seeds_of_one_scene_add_no_certainty():
    once = rows(OURS, {"a": 0.5, "b": 0.9}) + rows(THEIRS, {"a": 0.4, "b": 0.5})
    thrice = [Score(**{**vars(row), "seed": seed}) for row in once for seed in range(3)]
    first, second = (paired_difference(scores, "progress", first=OURS, second=THEIRS) for scores in (once, thrice))
    assert second.num_scored == 6
    assert ends(second) == pytest.approx(ends(first))


def test_an_anchor_with_one_seed_is_compared_with_every_seed():
    scores = rows(OURS, {"a": 0.5, "b": 0.9}, seed=0) + rows(OURS, {"a": 0.7, "b": 0.7}, seed=1)
    scores += rows(("nothing", "none"), {"a": 0.0, "b": 0.0})
    found = paired_difference(scores, "progress", first=OURS, second=("nothing", "none"))
    assert (found.num_scored, found.mean) == (4, pytest.approx(0.7))


def test_a_case_that_one_of_them_failed_is_missing_and_not_zero():
    scores = rows(OURS, {"a": 0.5, "b": math.nan, "c": 0.7}) + rows(THEIRS, {"a": 0.4, "b": 0.5, "c": 0.6})
    found = paired_difference(scores, "progress", first=OURS, second=THEIRS)
    assert (found.num_scored, found.num_missing, found.mean) == (2, 1, pytest.approx(0.1))


def test_one_scene_gives_a_difference_without_an_interval():
    found = paired_difference(rows(OURS, {"a": 0.5}) + rows(THEIRS, {"a": 0.4}), "progress", first=OURS, second=THEIRS)
    assert math.isnan(found.reach) and found.mean == pytest.approx(0.1)


def test_only_rows_of_the_metric_and_of_both_contenders_count():
    scores = rows(OURS, {"a": 0.5, "b": 0.9, "only ours": 9.0}) + rows(
        THEIRS, {"a": 0.4, "b": 0.5, "only theirs": -9.0}
    )
    others = [Score(**{**vars(row), "metric": "spill", "value": 77.0}) for row in scores]
    others += rows(("restage", "mock"), {"a": 50.0}) + rows(("idu", "mock"), {"b": 50.0})
    others += [Score(**{**vars(row), "edit": "f", "value": 0.1 + row.value}) for row in scores]
    found = paired_difference([*scores, *others], "progress", first=OURS, second=THEIRS)
    assert (found.mean, found.num_scored, found.num_scenes, found.num_missing) == (pytest.approx(0.25), 4, 2, 0)


@pytest.mark.parametrize("flip", [False, True])
def test_seeds_that_only_one_contender_has_are_left_out_unless_the_other_has_a_single_one(flip):
    many = rows(OURS, {"a": 0.5, "b": 0.5}, seed=0) + rows(OURS, {"a": 0.7, "b": 0.9}, seed=1)
    two = rows(THEIRS, {"a": 0.1, "b": 0.2}, seed=1) + rows(THEIRS, {"a": 0.3, "b": 0.4}, seed=2)
    first, second = (THEIRS, OURS) if flip else (OURS, THEIRS)
    sign = -1 if flip else 1
    found = paired_difference(many + two, "progress", first=first, second=second)
    assert (found.num_scored, found.mean) == (2, pytest.approx(sign * 0.65))  # seed 1 is what they share
    single = rows(THEIRS, {"a": 0.1, "b": 0.2}, seed=5)
    found = paired_difference(many + single, "progress", first=first, second=second)
    assert (found.num_scored, found.mean) == (4, pytest.approx(sign * 0.5))


def test_a_contender_that_does_not_occur_is_refused():
    with pytest.raises(InputError, match="no rows of progress for idu"):
        paired_difference(rows(OURS, {"a": 0.5}), "progress", first=OURS, second=THEIRS)


def test_the_mean_of_rows_says_why_some_are_missing():
    missing = rows(OURS, {"c": math.nan}, seed=1) + rows(OURS, {"c": math.nan}, seed=2)
    missing = [*missing, *(Score(**{**vars(row), "reason": "out of memory"}) for row in missing)]
    found = estimate_scores(rows(OURS, {"a": 1.0, "b": 2.0}) + missing)
    assert (found.mean, found.num_scored, found.num_missing, found.num_scenes) == (1.5, 2, 4, 2)
    assert found.reason == "no reason given; out of memory"
    assert found.reach == pytest.approx(stats.t.ppf(0.975, 1) * 0.5)
    assert estimate_scores(rows(OURS, {"a": 1.0})).reason == "" and estimate_scores([]).reason == "not measured"
