"""Tasks one after the other in this process; an error of a task is raised as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

from restage.pairs.campaign_queue import TaskQueue
from restage.pairs.executors.interface import BatchDone, EngineConfig, Event
from restage.pairs.tasks import PairTask
from restage.pairs.worker import TaskReport, Worker, WorkerSettings, make_shard

__all__ = ["run_inline"]


def _make(worker: Worker, task: PairTask) -> Iterator[Event]:
    found = worker.found(task)
    if found is not None:
        yield found
        return
    started_s = time.monotonic()
    steps = make_shard(worker.settings, task, worker.open())
    while True:
        try:
            num_made = next(steps)
        except StopIteration as end:
            yield worker.done(task, end.value, seconds=time.monotonic() - started_s)
            return
        if num_made < len(task.jobs):
            yield BatchDone(task.index, num_made)


def run_inline(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Make all tasks of the queue here."""
    worker = Worker(settings, devices()[0])
    while not queue.is_finished:
        for task in queue.take(num_workers=1):
            for event in _make(worker, task):
                if isinstance(event, TaskReport):
                    queue.report(event)
                yield event


def devices() -> list[str]:
    """The GPUs of this machine, else its CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
