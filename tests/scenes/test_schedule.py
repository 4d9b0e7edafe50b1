"""The schedule of a fit: by steps, by time, and when the loss has levelled off."""

import pytest

from restage.scenes.fit import Schedule


class Clock:
    def __init__(self, *, step_s: float) -> None:
        self.now_s, self.step_s = 100.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_without_a_budget_the_share_is_that_of_the_steps():
    schedule = Schedule(4, 2)
    shares = []
    while not schedule.is_over:
        schedule.advance(1.0)
        shares.append(schedule.share)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_a_budget_that_is_short_ends_the_fit_in_time_with_its_share_at_one():
    schedule = Schedule(1000, 2, budget_s=10.0, clock=Clock(step_s=0.5))
    while not schedule.is_over:
        schedule.advance(1.0)
    assert schedule.step == 21  # the first step is not counted, it may compile kernels
    assert schedule.share == 1.0


def test_a_budget_that_is_long_does_not_add_steps():
    schedule = Schedule(5, 2, budget_s=1000.0, clock=Clock(step_s=0.5))
    while not schedule.is_over:
        schedule.advance(1.0)
    assert schedule.step == 5


def test_time_between_two_sessions_does_not_count():
    clock = Clock(step_s=1.0)
    first = Schedule(100, 2, budget_s=50.0, clock=clock)
    for _ in range(4):
        first.advance(1.0)
    clock.now_s += 1000.0
    second = Schedule(100, 2, budget_s=50.0, clock=clock)
    second.load_state(first.state())
    assert (second.step, second.elapsed_s) == (4, 3.0)
    second.advance(1.0)
    second.advance(1.0)
    assert second.elapsed_s == 4.0


def losses_until_over(losses: list[float], *, min_gain: float, num_views: int = 2, patience: int = 2) -> int:
    schedule = Schedule(10_000, num_views, min_gain=min_gain, patience=patience)
    for loss in losses:
        schedule.advance(loss)
        if schedule.is_over:
            break
    return schedule.step


def test_a_loss_that_no_longer_falls_ends_the_fit():
    falling = [1.0 / (1 + step) for step in range(20)]
    assert losses_until_over(falling, min_gain=0.01) == 20
    assert losses_until_over(falling + [0.05] * 40, min_gain=0.01) < 32
    assert losses_until_over(falling + [0.05] * 40, min_gain=0.0) == 60


def test_views_that_are_harder_than_others_do_not_end_the_fit():
    assert losses_until_over([0.1, 0.9] + [0.09, 0.8] + [0.08, 0.7] + [0.07, 0.6], min_gain=0.05) == 8


@pytest.mark.parametrize("count", [5, 7])
def test_a_schedule_goes_on_where_it_was(count):
    whole = Schedule(100, 3, min_gain=0.1)
    for step in range(12):
        whole.advance(float(step))
    part = Schedule(100, 3, min_gain=0.1)
    for step in range(count):
        part.advance(float(step))
    rest = Schedule(100, 3, min_gain=0.1)
    rest.load_state(part.state())
    for step in range(count, 12):
        rest.advance(float(step))
    assert (rest.passes, rest.pass_loss, rest.step) == (whole.passes, whole.pass_loss, whole.step)
