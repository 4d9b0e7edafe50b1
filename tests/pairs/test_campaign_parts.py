import os
import stat

import pytest

from restage.pairs.campaign_queue import MAX_LOSSES, TaskQueue
from restage.pairs.campaign_status import Estimate, Tally, bytes_text, seconds_text
from restage.pairs.executors.interface import EngineConfig, WorkerLost
from restage.pairs.executors.pool import MAX_BAD_TASKS, Message, run_pool
from restage.pairs.generate import make_jobs
from restage.pairs.idle import DeviceWatch
from restage.pairs.tasks import TaskPlan
from restage.pairs.worker import Status, TaskReport
from restage.records import InputError
from tests.pairs.stand_in import make_prompts, stand_in_config


def make_plan(count=20, **changes) -> TaskPlan:
    return TaskPlan(prompts=make_prompts(count), config=stand_in_config(**changes), run_seed=7, maker_id="m")


def make_queue(count=20, **changes) -> TaskQueue:
    plan = make_plan(count, pairs_per_shard=1)
    queue = TaskQueue(plan, range(len(plan)), **{"max_attempts": 2, **changes})
    queue.is_probing = False
    return queue


def report(index: int, status: Status = "done", **facts) -> TaskReport:
    return TaskReport(index=index, status=status, worker="here:1", **facts)


@pytest.mark.parametrize(("samples", "size"), [(1, 3), (3, 2), (2, 7), (5, 4)])
def test_tasks_cut_the_list_of_jobs_into_equal_parts(samples, size):
    plan = make_plan(7, samples_per_prompt=samples, pairs_per_shard=size)
    jobs = make_jobs(plan.prompts, plan.config.generate, samples_per_prompt=samples, run_seed=7)
    tasks = [plan[index] for index in range(len(plan))]
    assert [job.id for task in tasks for job in task.jobs] == [job.id for job in jobs]
    assert [len(task.jobs) for task in tasks] == [plan.num_jobs(index) for index in range(len(plan))]
    assert len({task.content for task in tasks}) == len(plan) and plan.num_pairs == len(jobs)
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_plan_depends_on_all_but_the_rule():
    ids = {make_plan(7).id, make_plan(8).id, make_plan(7, samples_per_prompt=2).id, make_plan(7, pairs_per_shard=5).id}
    assert len(ids) == 4 and make_plan(7, rule=type(make_plan().config.rule)()).id == make_plan(7).id


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


class ScriptedWorker:
    def __init__(self, place, answers):
        self.name = self.place = place
        self.answers, self.tasks, self.is_dead = answers, [], False

    def send(self, tasks):
        self.tasks = list(tasks)

    def ask_to_stop(self):
        pass

    def kill(self):
        self.is_dead = True


class ScriptedPool:
    """Workers that answer each task by a function of place and task."""

    def __init__(self, names, answer):
        self.names, self.answer, self.started, self.is_closed = names, answer, [], False

    def places(self):
        return list(self.names)

    def start(self, place):
        self.started.append(ScriptedWorker(place, self.answer))
        return self.started[-1]

    def wait(self, workers, timeout_s):
        messages = [Message(worker, is_ready=True) for worker in workers if not worker.tasks]
        for worker in workers:
            if worker.tasks:
                task, worker.tasks = worker.tasks[0], []
                messages.append(Message(worker, reports=(self.answer(worker.place, task),), is_idle=True))
        return messages

    def close(self):
        self.is_closed = True


def test_a_worker_that_fails_task_after_task_is_retired_and_others_do_its_work():
    bad = lambda place, task: report(task.index, "failed" if place == "bad" else "done", reason="broken")  # noqa: E731
    pool, queue = ScriptedPool(["bad", "good"], bad), make_queue(60, max_attempts=50)
    events = list(run_pool(pool, queue, EngineConfig(engine="local")))
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert [event.is_for_good for event in lost] == [True] and f"{MAX_BAD_TASKS} tasks" in lost[0].reason
    assert queue.is_finished and not queue.set_aside and pool.is_closed and len(pool.started) == 2


def test_workers_that_all_are_unfit_stop_the_campaign():
    unfit = lambda place, task: report(task.index, "unfit", reason="other models")  # noqa: E731
    pool = ScriptedPool(["a", "b"], unfit)
    with pytest.raises(InputError, match="other models"):
        list(run_pool(pool, make_queue(), EngineConfig(engine="local")))
    assert all(worker.is_dead for worker in pool.started) and pool.is_closed


def test_a_worker_that_gives_way_comes_back_later_with_no_task_lost():
    seen: list[int] = []

    def answer(place, task):
        seen.append(task.index)
        return report(task.index, "gave way" if len(seen) == 3 else "busy" if len(seen) == 4 else "done")

    pool, queue = ScriptedPool(["gpu"], answer), make_queue(5)
    list(run_pool(pool, queue, EngineConfig(engine="local", poll_s=0.01)))
    assert sorted(set(seen)) == list(range(5)) and len(seen) == 7 and len(pool.started) == 2 and not queue.losses


def test_an_estimate_says_tasks_time_room_and_cost():
    estimate = Estimate(
        num_tasks=100,
        num_pairs=1600,
        num_workers=15,
        seconds=7200.0,
        num_bytes=2 * 10**9,
        free_bytes=10**10,
        acceptance=0.5,
        cost_per_hour=2.0,
    )
    assert str(estimate) == (
        "100 tasks, 1600 pairs: 2 h 0 min with 15 workers, 2.0 GB of 10.0 GB free, 50% accepted, "
        "cost 60.00 (0.0750 an accepted pair)"
    )
    assert estimate.has_room


def test_times_and_sizes_are_said_as_people_say_them():
    assert [seconds_text(s) for s in (4.0, 600.0, 7800.0, 273600.0)] == ["4 s", "10 min", "2 h 10 min", "3 days 4 h"]
    assert [bytes_text(n) for n in (2_500_000, 3_400_000_000)] == ["2.5 MB", "3.4 GB"]


def test_a_tally_counts_yield_pace_by_device_and_failures_by_reason():
    tally = Tally(num_tasks=4, num_pairs=16)
    tally.add(report(0, device="cuda:0", seconds=2.0, num_pairs=4, num_accepted=3))
    tally.add(report(1, "found", num_pairs=4, num_accepted=1))
    tally.add(report(2, "failed", reason="OutOfMemoryError: 2 GB"))
    record = tally.record()
    assert (record["acceptance"], record["tasks"], record["pairs"]["made_now"]) == (0.5, {"all": 4, "done": 2}, 4)
    assert record["pairs_per_s_by_device"] == {"here cuda:0": 2.0}
    assert record["failures"] == {"OutOfMemoryError: 2 GB": 1} and "1 x OutOfMemoryError" in tally.note(1, None)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi whose answers are files."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *compute-apps*) cat {tmp_path}/pids;; *utilization*) cat {tmp_path}/use;; esac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def say(pids: str, use: str) -> None:
        (tmp_path / "pids").write_text(pids)
        (tmp_path / "use").write_text(use)

    return say


def test_a_gpu_is_left_to_others_and_our_own_process_does_not_count(nvidia_smi):
    watch = DeviceWatch("cuda:0")
    nvidia_smi("4711\n", "3\n")
    assert not watch.is_free()
    nvidia_smi("", "0\n")
    assert watch.is_free()
    watch.before_load()
    nvidia_smi("99\n", "100\n")  # ours, by the number that it has outside of the container
    watch.after_load()
    assert watch.is_free()
    nvidia_smi("99\n4711\n", "100\n")
    assert not watch.is_free()


def test_a_gpu_whose_processes_cannot_be_seen_is_judged_by_its_use(nvidia_smi):
    nvidia_smi("", "85\n")
    assert not DeviceWatch("cuda:1").is_free()


def test_a_cpu_is_left_to_others_by_its_load(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, is_free in ((0.0, True), (3.4, True), (3.6, False), (9.0, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert DeviceWatch("cpu").is_free() == is_free
    monkeypatch.setattr(os, "getloadavg", lambda: (4.4, 0.0, 0.0))
    watch = DeviceWatch("cpu", num_own_threads=1)
    watch.after_load()
    assert watch.is_free()  # one of the 4.4 is us
