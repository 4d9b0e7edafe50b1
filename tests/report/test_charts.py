"""Charts: right scales, no lag, nothing drawn from what is not a number."""

import math
import re

import pytest

from restage.report.words import interval_mark, loss_curve, nice_ticks, smooth
from restage.run.reading import TrainingStep


def training(*losses):
    return [TrainingStep(step=step, values={"loss": loss}) for step, loss in enumerate(losses)]


def test_ticks_are_round_and_within_the_range():
    assert nice_ticks(0.0, 1.0, count=4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(1.0, 300.0, count=6) == [50, 100, 150, 200, 250, 300]
    assert nice_ticks(2.0, 2.0) == [2]


def test_moving_average_keeps_straight_lines():
    line = [3.0 - 0.1 * index for index in range(20)]
    assert smooth(line, reach=4) == pytest.approx(line)


def test_losses_that_are_not_finite_are_left_out():
    curve = loss_curve(training(0.5, math.nan, math.inf, 0.1))
    assert "nan" not in curve and "inf" not in curve
    assert len(re.findall(r'class="raw" points="([^"]*)"', curve)[0].split()) == 2


def test_long_runs_are_thinned_and_keep_their_last_step():
    curve = loss_curve(training(*(1 / (1 + step) for step in range(10_000))), max_points=100)
    points = re.findall(r'class="average" points="([^"]*)"', curve)[0].split()
    assert len(points) <= 102
    assert points[-1].startswith("730.0,")


def test_too_few_losses_draw_nothing():
    assert loss_curve(training(0.5)) == ""


def test_mark_lies_between_its_ends_and_is_empty_when_unscored():
    middle = re.findall(r'cx="([0-9.]+)"', interval_mark(0.5, math.nan, low=0.0, high=1.0, width=110))
    assert float(middle[0]) == 55
    assert 'class="error"' in interval_mark(0.5, 0.1, low=0.0, high=1.0)
    assert interval_mark(math.nan, math.nan, low=0.0, high=1.0) == ""
