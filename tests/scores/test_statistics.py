import math

import numpy as np
import pytest
from scipy import stats

from restage.records import InputError, Score
from restage.scores.statistics import paired_difference

OURS, THEIRS = ("restage", "edit_model"), ("idu", "edit_model")


def rows(who: tuple[str, str], values: dict[str, float], *, seed: int = 0, edit: str = "e") -> list[Score]:
    fields = {"edit": edit, "kind": "recolour", "method": who[0], "editor": who[1], "seed": seed, "metric": "progress"}
    return [Score(scene=scene, value=value, **fields) for scene, value in values.items()]


def test_the_interval_is_that_of_the_paired_t_test_where_every_scene_has_one_case():
    ours, theirs = [0.8, 0.6, 0.9, 0.4], [0.5, 0.5, 0.6, 0.5]
    names = "abcd"
    scores = rows(OURS, dict(zip(names, ours, strict=True))) + rows(THEIRS, dict(zip(names, theirs, strict=True)))
    found = paired_difference(scores, "progress", first=OURS, second=THEIRS)
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.num_pairs, found.num_scenes, found.is_clear) == (4, 4, False)


def test_pairing_takes_out_what_scenes_have_in_common():
    scenes = {name: float(index) for index, name in enumerate("abcdef")}
    better = {name: value + 0.1 + 0.01 * (index % 2) for index, (name, value) in enumerate(scenes.items())}
    found = paired_difference(rows(OURS, better) + rows(THEIRS, scenes), "progress", first=OURS, second=THEIRS)
    assert found.is_clear
    assert found.standard_error < 0.01


def test_seeds_of_one_scene_add_no_certainty():
    once = rows(OURS, {"a": 0.5, "b": 0.9}) + rows(THEIRS, {"a": 0.4, "b": 0.5})
    thrice = [Score(**{**vars(row), "seed": seed}) for row in once for seed in range(3)]
    first, second = (paired_difference(scores, "progress", first=OURS, second=THEIRS) for scores in (once, thrice))
    assert second.num_pairs == 6
    assert (second.low, second.high) == pytest.approx((first.low, first.high))


def test_an_anchor_with_one_seed_is_compared_with_every_seed():
    scores = rows(OURS, {"a": 0.5, "b": 0.9}, seed=0) + rows(OURS, {"a": 0.7, "b": 0.7}, seed=1)
    scores += rows(("nothing", "none"), {"a": 0.0, "b": 0.0})
    found = paired_difference(scores, "progress", first=OURS, second=("nothing", "none"))
    assert (found.num_pairs, found.mean) == (4, pytest.approx(0.7))


def test_a_case_that_one_of_them_failed_is_missing_and_not_zero():
    scores = rows(OURS, {"a": 0.5, "b": math.nan, "c": 0.7}) + rows(THEIRS, {"a": 0.4, "b": 0.5, "c": 0.6})
    found = paired_difference(scores, "progress", first=OURS, second=THEIRS)
    assert (found.num_pairs, found.num_missing, found.mean) == (2, 1, pytest.approx(0.1))


def test_one_scene_gives_a_difference_without_an_interval():
    found = paired_difference(rows(OURS, {"a": 0.5}) + rows(THEIRS, {"a": 0.4}), "progress", first=OURS, second=THEIRS)
    assert math.isnan(found.low) and not found.is_clear


def test_a_contender_that_does_not_occur_is_refused():
    with pytest.raises(InputError, match="no rows of progress for idu"):
        paired_difference(rows(OURS, {"a": 0.5}), "progress", first=OURS, second=THEIRS)
