"""Tasks one after the other in this process; an error of a task is raised as it is."""

from __future__ import annotations

from collections.abc import Iterator

from restage.work.interface import EngineConfig, Event, Stepped
from restage.work.queue import TaskQueue
from restage.work.task import Report
from restage.work.worker import Worker, WorkerSettings, restored_threads

__all__ = ["devices", "run_inline"]


def run_inline(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Do all tasks of the queue here."""
    worker = Worker(settings, devices(uses_gpu=settings.uses_gpu)[0])
    with restored_threads(settings.threads):
        while not queue.is_finished:
            for task in queue.take(num_workers=1):
                for step in worker.steps(task):
                    if isinstance(step, Report):
                        queue.report(step)
                    yield step if isinstance(step, Report) else Stepped(task.index, step)


def devices(*, uses_gpu: bool = True) -> list[str]:
    """The GPUs of this machine, if they are of use; else its CPU."""
    if not uses_gpu:
        return ["cpu"]
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
