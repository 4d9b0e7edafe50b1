import math

import pytest

from restage.diagnose.attribution import Swap, attribute, interval

CASES = {f"case {number}": f"scene {number}" for number in range(6)}


def game(quality):
    """Values of a game on every case; cases differ, what parts cost does not."""
    return lambda *from_b: {case: float(number + quality(set(from_b))) for number, case in enumerate(CASES)}


def swaps_of(value, parts):
    return [
        Swap(component=part, a_with_b=value(part), b_with_a=value(*(other for other in parts if other != part)))
        for part in parts
    ]


def split(quality, *parts):
    value = game(quality)
    return attribute(value(), value(*parts), swaps_of(value, parts), CASES)


def test_costs_that_add_up_are_each_parts_own_share():
    costs = {"guidance": 0.2, "masks": 0.05, "fit": 0.0}
    found = split(lambda from_b: -sum(costs[part] for part in from_b), *costs)
    assert {share.component: share.share.mean for share in found.shares} == pytest.approx(costs)
    assert found.total.mean == pytest.approx(0.25)
    assert found.remainder.mean == pytest.approx(0.0)
    assert [share.component for share in found.shares][0] == "guidance"


def test_what_two_parts_cost_only_together_is_shared_evenly_and_shown_as_interaction():
    found = split(lambda from_b: -0.3 * (from_b == {"guidance", "masks"}), "guidance", "masks")
    assert [share.share.mean for share in found.shares] == pytest.approx([0.15, 0.15])
    assert [share.interaction for share in found.shares] == pytest.approx([-0.3, -0.3])
    assert found.remainder.mean == pytest.approx(0.0)


def test_what_takes_three_parts_is_left_as_remainder_and_not_spread():
    found = split(lambda from_b: -0.3 * (len(from_b) == 3), "guidance", "masks", "fit")
    assert [share.share.mean for share in found.shares] == pytest.approx([0.15] * 3)
    assert found.remainder.mean == pytest.approx(0.3 - 0.45)


def test_a_part_that_helps_has_a_negative_share():
    found = split(lambda from_b: 0.1 * ("fit" in from_b) - 0.3 * ("guidance" in from_b), "guidance", "fit")
    assert {share.component: share.share.mean for share in found.shares} == pytest.approx(
        {"guidance": 0.3, "fit": -0.1}
    )


def test_noise_around_zero_is_not_clear_and_a_steady_loss_is():
    noise = dict(zip(CASES, (0.2, -0.25, 0.1, -0.1, 0.15, -0.05), strict=True))
    steady = {case: 0.2 + value / 10 for case, value in noise.items()}
    assert not interval(noise, CASES).is_clear
    assert interval(steady, CASES).is_clear
    assert interval(steady, CASES).is_clear_of(20)


def test_the_interval_is_wider_when_several_parts_are_looked_at():
    values = dict(zip(CASES, (0.1, 0.02, 0.2, 0.05, 0.12, 0.0), strict=True))
    found = interval(values, CASES)
    assert found.is_clear
    assert not found.is_clear_of(10)


def test_edits_of_one_scene_count_as_one_when_there_are_other_scenes():
    values = {"a": 0.1, "b": 0.1, "c": 0.3}
    assert interval(values, {"a": "1", "b": "1", "c": "2"}).num_clusters == 2
    assert interval(values, {"a": "1", "b": "1", "c": "1"}).num_clusters == 3


def test_one_case_has_no_interval_and_is_never_clear():
    found = interval({"a": 0.5}, {"a": "scene"})
    assert found.high == math.inf
    assert not found.is_clear
    assert not found.is_clear_of(1)


def test_nan_is_left_out():
    assert interval({"a": 0.5, "b": math.nan, "c": 0.7}, {"a": "1", "b": "2", "c": "3"}).num_cases == 2
