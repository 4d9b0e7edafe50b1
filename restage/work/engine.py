"""Does the tasks of a queue on the engine that is chosen: the one entry for the rooms above."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping

from restage.records import InputError, Progress
from restage.run.threads import limited_threads
from restage.work.pool import run_local
from restage.work.ray_cluster import run_ray
from restage.work.task import EngineConfig, Event, Report, SetAside, Stepped, TaskQueue, Tick, Work, WorkerLost
from restage.work.worker import Worker, WorkerSettings, devices

__all__ = ["ENGINES", "TasksSetAside", "WorkStopped", "explain", "run_tasks", "settings_for", "work_through"]


def _run_inline(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Do all tasks of the queue one after the other in this process; an error of a task is raised as it is."""
    worker = Worker(settings, devices(settings.device)[0])
    with limited_threads(settings.threads):
        while not queue.is_finished:
            for task in queue.take(num_workers=1):
                for step in worker.steps(task):
                    if isinstance(step, Report):
                        queue.report(step)
                    yield step if isinstance(step, Report) else Stepped(task.index, step)


Engine = Callable[[TaskQueue, WorkerSettings, EngineConfig], Iterator[Event]]
"""Has tasks done until the queue is finished, and tells the queue of every report and loss before it yields it; when
closed early it stops its workers. Raises InputError if no worker can do any task."""

ENGINES: Mapping[str, Engine] = {"inline": _run_inline, "local": run_local, "ray": run_ray}


class WorkStopped(InputError):
    """The work cannot go on; what is made stays."""


class TasksSetAside(WorkStopped):
    """Some tasks failed again and again; all others are done."""


def run_tasks(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Generator[Event, None, None]:
    """Have all tasks of a queue done; yields what happens, the queue knows it before.

    A task's result depends on the task alone, and counts only when it is whole: a second driver does no harm.

    Raises:
        WorkStopped: the disk is full.
        InputError: no worker can do any task.
    """
    assert config.engine is not None
    events = ENGINES[config.engine](queue, settings, config)
    try:
        for event in events:
            yield event
            while queue.news:
                yield queue.news.pop(0)
            if isinstance(event, Report) and event.status == "disk full":
                raise WorkStopped(
                    f"the disk is full ({event.reason}); what is made stays; make room and run this again"
                ) from OSError(errno.ENOSPC, event.reason)
    finally:
        events.close()  # pyright: ignore[reportAttributeAccessIssue]


def settings_for(work: Work, config: EngineConfig, *, device: str = "cuda") -> WorkerSettings:
    """Returns what workers are told; in processes each computes with one thread unless --threads says otherwise."""
    threads = config.threads if config.engine == "inline" else config.threads or 1
    return WorkerSettings(work=work, threads=threads, is_polite=config.when_idle, device=device)


def work_through(
    queue: TaskQueue,
    settings: WorkerSettings,
    config: EngineConfig,
    *,
    give_up: Callable[[SetAside], None] | None = None,
) -> Iterator[Progress]:
    """Have all tasks of a queue done, told as progress of the stages that the tasks belong to.

    Raises:
        TasksSetAside: some were set aside, and there is no `give_up` to be called with each; all others are done.
        WorkStopped: the disk is full.
        InputError: no worker can do any task; inline, also what a task raised.
    """
    totals = Counter(task.kind for task in queue.tasks)
    done = totals - Counter(queue.tasks[index].kind for index in (*queue.waiting, *queue.blocked))
    kind = next(iter(totals), "")

    def progress(note: str) -> Progress:
        return Progress(stage=kind, done=done[kind], total=totals[kind], note=note)

    for kind in done:
        yield progress(f"{done[kind]} of {totals[kind]} were there")
    # Closed here and not when it is collected: workers are to stop now.
    with contextlib.closing(run_tasks(queue, settings, config)) as events:
        for event in events:
            if isinstance(event, WorkerLost):
                yield progress(f"{event.worker}: {event.reason}")
            elif not isinstance(event, Tick):
                task = queue.tasks[event.index]
                kind = task.kind
                if isinstance(event, SetAside) and give_up is not None:
                    give_up(event)
                done[kind] += isinstance(event, SetAside) or (isinstance(event, Report) and event.is_over)
                if note := _note(event):
                    yield progress(f"{task.item}: {note}")
    if queue.set_aside and give_up is None:
        raise TasksSetAside(explain(queue))


def _note(event: Report | Stepped | SetAside) -> str:
    if isinstance(event, Stepped):
        return event.progress.note
    if isinstance(event, SetAside):
        return f"set aside: {event.reason}"
    if event.is_over:
        return event.facts.get("note", "done")
    return f"{event.status}: {event.reason}" if event.reason else ""


def explain(queue: TaskQueue) -> str:
    """Returns which tasks were set aside, and why the first one was."""
    first = min(queue.set_aside)
    return (
        f"{len(queue.set_aside)} of {len(queue.tasks)} tasks are set aside, all others are done; the first: "
        f"{queue.tasks[first].item}, {queue.set_aside[first].reason}; the same command tries them again"
    )
