from __future__ import annotations

from restage.work.task import MAX_BUNDLE, Report, Status, Task, TaskQueue


def make_queue(count: int = 20, **changes) -> TaskQueue:
    """Make a queue of tasks that are nothing but numbers, handed out in bundles."""
    tasks = [Task(index=index, item=None) for index in range(count)]
    return TaskQueue(tasks, range(count), **{"max_attempts": 2, "max_bundle": MAX_BUNDLE, **changes})


def report(index: int, status: Status = "done", **facts) -> Report:
    return Report(index=index, status=status, worker="here:1", **facts)
