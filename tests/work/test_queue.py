import pytest

from restage.work.task import MAX_LOSSES
from tests.work.tiny_tasks import make_queue, report


def test_a_single_task_is_out_while_the_probe_is_measured():
    queue = make_queue()
    queue.is_probing = True
    assert [task.index for task in queue.take(3)] == [0] and queue.take(3) == []


def test_tiny_tasks_go_out_together_and_long_ones_alone():
    queue = make_queue(1000)
    queue.mean_task_s = 0.01
    assert len(queue.take(2)) == 125  # a quarter of a worker's share
    queue.mean_task_s = 60.0
    assert len(queue.take(2)) == 1


def test_tasks_of_a_lost_worker_come_back_alone_and_are_given_up_in_the_end():
    queue = make_queue(100)
    queue.mean_task_s = 0.1
    first = [task.index for task in queue.take(1)]
    assert len(first) > 1
    queue.lose(first, "killed")
    for count in range(MAX_LOSSES - 1):
        (task,) = queue.take(1)
        assert queue.losses[task.index] == count + 1
        queue.lose([task.index], "killed")
    assert list(queue.set_aside) == [task.index]


def test_a_report_of_a_worker_that_was_taken_for_lost_is_passed_over():
    queue = make_queue(3)
    (task,) = queue.take(1)
    queue.lose([task.index], "silent")
    queue.report(report(task.index))
    assert task.index in queue.waiting and not queue.is_finished


def test_work_that_is_not_bundled_goes_out_one_by_one_however_tiny_it_is():
    queue = make_queue(1000, max_bundle=1)
    queue.mean_task_s = 0.01
    assert len(queue.take(2)) == 1


def test_a_task_waits_for_those_that_it_needs():
    queue = make_queue(4, needs={1: [0], 3: [0, 2]})
    assert [task.index for _ in range(3) for task in queue.take(1)] == [0, 2] and not queue.is_finished
    queue.report(report(0))
    assert [task.index for _ in range(2) for task in queue.take(1)] == [1]
    queue.report(report(2, "found"))
    assert [task.index for task in queue.take(1)] == [3]
    queue.report(report(1))
    queue.report(report(3))
    assert queue.is_finished and queue.num_left == 0


def test_what_is_done_already_is_not_waited_for():
    queue = make_queue(3, needs={2: [9]})
    assert [task.index for _ in range(3) for task in queue.take(1)] == [0, 1, 2]


def test_tasks_that_need_one_that_is_given_up_are_given_up_with_it():
    queue = make_queue(4, max_attempts=1, needs={1: [0], 2: [1], 3: [0, 1]})
    queue.take(1)
    queue.report(report(0, "failed", reason="ValueError: no scene"))
    assert queue.is_finished and sorted(queue.set_aside) == [0, 1, 2, 3]
    assert sorted(one.index for one in queue.news) == [0, 1, 2, 3]
    assert "no scene" in queue.set_aside[2].reason


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_task_that_fails_is_tried_as_often_as_asked_and_then_set_aside(max_attempts):
    queue = make_queue(2, max_attempts=max_attempts)
    tried = 0
    while not queue.is_finished:
        for task in queue.take(1):
            tried += task.index == 0
            queue.report(report(task.index, "failed" if task.index == 0 else "done", reason="why", details="trace"))
    assert tried == max_attempts
    assert [vars(one) for one in queue.set_aside.values()] == [{"index": 0, "reason": "why", "details": "trace"}]


def test_a_task_that_failed_goes_to_the_end_and_comes_back_alone():
    queue = make_queue(40, max_attempts=3)
    queue.mean_task_s = 0.1
    first = [task.index for task in queue.take(1)]
    assert len(first) == 10
    queue.report(report(3, "failed"))
    taken = []
    while queue.waiting:
        taken.append([task.index for task in queue.take(1)])
    assert taken[-1] == [3] and [index for bundle in taken[:-1] for index in bundle] == list(range(10, 40))


def test_success_forgets_failures_and_losses_and_moves_the_mean():
    queue = make_queue(3, max_attempts=2)
    queue.take(1)
    queue.report(report(0, "failed"))
    queue.lose([task.index for task in queue.take(1)], "killed")
    while queue.waiting:
        for task in queue.take(1):
            queue.report(report(task.index, seconds=12.0))
    assert not queue.failures and not queue.losses and queue.is_finished and not queue.set_aside
    assert queue.mean_task_s == pytest.approx(12 - 10 * 0.9**3)  # from the 2 s that it begins with


def test_what_is_given_back_or_reported_busy_comes_first_and_costs_no_attempt():
    queue = make_queue(5, max_attempts=1)
    assert [task.index for _ in range(2) for task in queue.take(1)] == [0, 1]
    queue.give_back([1, 4])
    queue.report(report(0, "busy"))
    assert list(queue.waiting) == [0, 1, 2, 3, 4] and not queue.failures and not queue.losses


def test_a_suspect_goes_out_alone_wherever_it_waits():
    queue = make_queue(40)
    queue.mean_task_s = 0.1
    queue.lose([task.index for task in queue.take(4)], "killed")  # 0 and 1 are back in front
    assert [[task.index for task in queue.take(4)] for _ in range(3)] == [[1], [0], [2, 3]]
    queue.waiting.insert(1, 50)
    queue.losses[50] = 1
    queue.take(4)
    assert queue.waiting[-1] == 50  # behind the others, since it would have gone out with them


def test_every_task_is_counted_until_it_is_over():
    queue = make_queue(6, needs={5: [0]}, max_bundle=1)
    assert queue.num_left == 6
    queue.take(1)
    queue.take(1)
    queue.lose([1], "killed")
    queue.lose([1], "again")  # it is not at work any more
    assert queue.losses == {1: 1} and queue.at_work == {0} and queue.num_left == 6
    queue.report(report(1, "done", seconds=90.0))  # from the worker that was taken for lost
    assert queue.losses == {1: 1} and queue.mean_task_s == 2.0 and queue.num_left == 6
    queue.give_back([0])
    assert not queue.at_work and queue.waiting[0] == 0
    queue.take(1)
    queue.report(report(0, "found", seconds=90.0))
    assert queue.mean_task_s == 2.0 and queue.num_left == 5 and queue.waiting[-1] == 5


def test_dropped_tasks_are_not_handed_out():
    queue = make_queue(5, needs={4: [0]})
    queue.drop([1, 3, 4])
    assert list(queue.waiting) == [0, 2] and queue.num_left == 2 and queue.dropped == {1, 3, 4}
    queue.drop([])
    assert list(queue.waiting) == [0, 2]


def test_only_tasks_that_need_the_one_given_up_go_with_it():
    queue = make_queue(4, max_attempts=1, needs={2: [0], 3: [1]})
    queue.take(1)
    queue.report(report(0, "failed", reason="why"))
    assert sorted(queue.set_aside) == [0, 2] and queue.num_left == 2
    assert queue.set_aside[2].reason == "task 0, which it needs, was set aside: why"
