from restage.work.queue import MAX_LOSSES
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
