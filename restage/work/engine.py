"""Does the tasks of a queue on the engine that is chosen: the one entry for the rooms above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from restage.records import InputError
from restage.work.inline import run_inline
from restage.work.interface import Engine, EngineConfig, Event, Shared, WorkerLost
from restage.work.local import run_local
from restage.work.queue import TaskQueue
from restage.work.ray_cluster import run_ray
from restage.work.task import Report
from restage.work.worker import WorkerSettings

__all__ = ["ENGINES", "TasksSetAside", "WorkStopped", "run_tasks"]

ENGINES: Mapping[str, Engine] = {"inline": run_inline, "local": run_local, "ray": run_ray}


class WorkStopped(InputError):
    """The work cannot go on; what is made stays."""


class TasksSetAside(WorkStopped):
    """Some tasks failed again and again; all others are done."""


def run_tasks(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Have all tasks of a queue done; yields what happens, the queue knows it before.

    A second driver on the same folder does no harm, since nothing is locked: a task's result depends on the task
    alone, and counts only when it is whole. This one notices the other by results that it did not make, and takes the
    rest in random order, so that the two share the work.

    Raises:
        WorkStopped: the disk is full.
        InputError: no worker can do any task.
    """
    assert config.engine is not None
    events = ENGINES[config.engine](queue, settings, config)
    is_shared = has_lost = False
    try:
        for event in events:
            yield event
            while queue.news:
                yield queue.news.pop(0)
            has_lost = has_lost or isinstance(event, WorkerLost)
            if not isinstance(event, Report):
                continue
            if event.status == "disk full":
                raise WorkStopped(
                    f"the disk is full ({event.reason}); what is made stays; make room and run this again"
                )
            # A result that is there may also come from a worker that was lost before it could report it.
            if event.status == "found" and not is_shared and not has_lost:
                is_shared = True
                queue.shuffle()
                yield Shared()
    finally:
        events.close()  # pyright: ignore[reportAttributeAccessIssue]
