import pytest

from restage.records import InputError
from restage.work.pool import MAX_BAD_TASKS, Message, run_pool
from restage.work.task import EngineConfig, WorkerLost
from tests.work.tiny_tasks import make_queue, report


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
        self.names, self.answer, self.started = names, answer, []

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


def test_a_worker_that_fails_task_after_task_is_retired_and_others_do_its_work():
    bad = lambda place, task: report(task.index, "failed" if place == "bad" else "done", reason="broken")  # noqa: E731
    pool, queue = ScriptedPool(["bad", "good"], bad), make_queue(60, max_attempts=50)
    events = list(run_pool(pool, queue, EngineConfig(engine="local")))
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert [event.is_for_good for event in lost] == [True] and f"{MAX_BAD_TASKS} tasks" in lost[0].reason
    assert queue.is_finished and not queue.set_aside and len(pool.started) == 2


def test_workers_that_all_are_unfit_stop_the_campaign():
    unfit = lambda place, task: report(task.index, "unfit", reason="other models")  # noqa: E731
    pool = ScriptedPool(["a", "b"], unfit)
    with pytest.raises(InputError, match="other models"):
        list(run_pool(pool, make_queue(), EngineConfig(engine="local")))
    assert all(worker.is_dead for worker in pool.started)


def test_a_worker_that_gives_way_comes_back_later_with_no_task_lost():
    seen: list[int] = []

    def answer(place, task):
        seen.append(task.index)
        return report(task.index, "gave way" if len(seen) == 3 else "busy" if len(seen) == 4 else "done")

    pool, queue = ScriptedPool(["gpu"], answer), make_queue(5)
    list(run_pool(pool, queue, EngineConfig(engine="local", poll_s=0.01)))
    assert sorted(set(seen)) == list(range(5)) and len(seen) == 7 and len(pool.started) == 2 and not queue.losses
