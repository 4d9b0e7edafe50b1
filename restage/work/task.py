"""What a task is, how a kind of work does it, what the driver is told while it goes on, and its book of all tasks.

The book is in memory only: what counts is on disk, and a new driver reads it from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from restage.records import InputError, Progress

__all__ = ["EngineConfig", "Event", "Facts", "MAX_BUNDLE", "MAX_LOSSES", "OpenWork", "Report", "SetAside", "Status"]
__all__ += ["Stepped", "Task", "TaskQueue", "Tick", "Work", "WorkerLost"]


Item = TypeVar("Item")

Facts = Mapping[str, Any]
"""A few plain values that a report brings along, such as the number of pairs in a shard; `note` is for the user."""

Status = Literal["done", "found", "failed", "busy", "gave way", "stopped", "disk full", "unfit"]
"""What became of a task: it is done; it was there already; it raised an error; it was not begun because someone else
uses the device; it was given up for someone else; it was given up because the worker is to stop; the disk is full; this
worker cannot do any task."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Item]):
    """One piece of work: what a worker that dies costs at most."""

    index: int
    kind: str = ""
    """The stage that its progress is shown under; a kind of work may have tasks of several."""
    content: str = ""
    """Content id of the result, by which a result that is there already is known."""
    item: Item
    """What to do; small, since it is sent to the worker. Its text names it to the user."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of a task."""

    index: int
    status: Status
    worker: str
    device: str = ""
    seconds: float = 0.0
    facts: Facts = field(default_factory=dict)  # what the kind of work has to say of a result
    reason: str = ""  # the error in one line; empty if there was none
    details: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the task's result is there."""
        return self.status in ("done", "found")


@runtime_checkable
class OpenWork(Protocol):
    """A kind of work that is ready on one device."""

    def found(self, task: Task[Any]) -> Facts | None:
        """Facts of the task's result if it is there already: made before a worker was lost, or by another driver."""

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Do a task, return facts of its result; given up between two steps, it leaves nothing that counts."""
        ...


@runtime_checkable
class Work(Protocol):
    """A kind of work: small and picklable; it is sent to every worker.

    It may have `modules`, names of modules that its tasks load later: local workers are forked with them loaded.
    """

    def open(self, device: str) -> OpenWork:
        """Load whatever is heavy on a device; refuses a machine that lacks what it needs."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where work is done. Nothing here changes the result: with equal threads, bit for bit."""

    engine: Literal["inline", "local", "ray"] | None = None
    """In this process; in processes of this machine, one a device; or on a Ray cluster (restage[cluster]). Default:
    inline, or local with several workers or --when-idle."""
    workers: int | None = None
    """Workers at once; default: one a GPU, else one a CPU thread group; on a cluster as many as it has room for."""
    threads: int | None = None
    """CPU threads of each worker, which results on a CPU depend on; default: 1 beside other workers, and inline what
    the stage takes by itself."""
    when_idle: bool = False
    """Leave a device that someone else uses, and give way when they come (local and ray)."""
    address: str | None = None
    """Address of the Ray cluster, such as `auto` or `10.0.0.1:6379`; default: RAY_ADDRESS, else a cluster of this
    machine."""
    max_attempts: int = 3
    """Failures after which a task is set aside with its traceback, while the others go on."""
    grace_s: float = 10.0
    """Seconds that workers get to end their step when the work is stopped."""
    poll_s: float = 30.0
    """Seconds until a device that someone else uses is looked at again."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.grace_s < 0 or self.poll_s <= 0:
            raise InputError("grace_s must be at least 0, poll_s above 0")
        needs_processes = self.when_idle or (self.workers or 1) > 1
        if self.engine is None:
            object.__setattr__(self, "engine", "local" if needs_processes else "inline")
        elif self.engine == "inline" and needs_processes:
            raise InputError("--workers and --when-idle need other processes; choose --engine local or ray")


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A task that was given up."""

    index: int
    reason: str
    details: str


@dataclass(frozen=True)
class Stepped:
    """A task has come a step further; only an engine in this process says so."""

    index: int
    progress: Progress


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, or was sent away."""

    worker: str
    reason: str
    is_for_good: bool = False


@dataclass(frozen=True)
class Tick:
    """Nothing happened; time for the caller to look around."""

    num_workers: int = 0


Event = Report | Stepped | WorkerLost | Tick | SetAside


BUNDLE_S = 2.0
"""Seconds of work that go to a worker in one message, where tasks may be bundled."""
MAX_BUNDLE = 256
"""Most tasks in one message; for kinds of work whose tasks may be tiny."""
MAX_LOSSES = 8
"""Workers that may be lost over one task before the task is taken for the cause."""


class TaskQueue:
    """Hands out tasks, takes back those of lost workers, gives up those that fail again and again."""

    def __init__(
        self,
        tasks: Sequence[Task[Any]],
        missing: Iterable[int],
        *,
        max_attempts: int,
        max_bundle: int = 1,
        needs: Mapping[int, Iterable[int]] | None = None,
    ) -> None:
        """Start with the missing tasks, in the order in which they are handed out.

        Args:
            tasks: All tasks; may build each when it is asked for.
            missing: Numbers of the tasks to do.
            max_attempts: Failures after which a task is set aside.
            max_bundle: Most tasks that a worker gets at once.
            needs: Tasks that a task waits for, by its number; those that are not missing are done.
        """
        missing = list(missing)
        still_open = set(missing) if needs else set()
        self.tasks, self.max_attempts, self.max_bundle = tasks, max_attempts, max_bundle
        self.blocked = {
            index: found
            for index, needed in (needs or {}).items()
            if index in still_open and (found := still_open & set(needed))
        }
        self.waiting: deque[int] = deque(index for index in missing if index not in self.blocked)
        self.at_work: set[int] = set()
        self.failures: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.set_aside: dict[int, SetAside] = {}
        self.dropped: set[int] = set()
        self.news: list[SetAside] = []
        """Tasks set aside that nobody has been told of yet."""
        self.is_probing = False
        """While set, a single task is out: the probe that an estimate is made from."""
        self.mean_task_s = BUNDLE_S

    @property
    def is_finished(self) -> bool:
        """Whether every task is done or set aside."""
        # What is blocked waits for a task that is in one of these two: it cannot be all that is left.
        return not self.waiting and not self.at_work

    @property
    def num_left(self) -> int:
        """Tasks that are neither done nor set aside."""
        return len(self.waiting) + len(self.blocked) + len(self.at_work)

    def take(self, num_workers: int) -> list[Task[Any]]:
        """Hand out the next tasks for one worker; none if there is nothing to do for it now."""
        if self.is_probing:
            count = 0 if self.at_work else 1
        else:
            share = len(self.waiting) // (4 * max(num_workers, 1))  # towards the end nobody hoards
            count = max(1, min(self.max_bundle, share, int(BUNDLE_S / max(self.mean_task_s, 1e-4))))
        taken: list[int] = []
        while self.waiting and len(taken) < count:
            index = self.waiting.popleft()
            is_suspect = index in self.losses or index in self.failures
            if is_suspect and taken:
                self.waiting.append(index)  # alone, so that it takes nobody with it
                break
            taken.append(index)
            if is_suspect:
                break
        self.at_work.update(taken)
        return [self.tasks[index] for index in taken]

    def report(self, report: Report) -> None:
        """Note what became of a task."""
        if report.index not in self.at_work:
            return  # from a worker that was given up as lost, and was not
        self.at_work.discard(report.index)
        if report.is_over:
            self.failures.pop(report.index, None)
            self.losses.pop(report.index, None)
            for index, needed in list(self.blocked.items()):
                needed.discard(report.index)
                if not needed:
                    del self.blocked[index]
                    self.waiting.append(index)
            if report.status == "done":
                self.mean_task_s += 0.1 * (report.seconds - self.mean_task_s)
        elif report.status == "failed":
            self.failures[report.index] = self.failures.get(report.index, 0) + 1
            if self.failures[report.index] >= self.max_attempts:
                self._set_aside(report.index, report.reason, report.details)
            else:
                self.waiting.append(report.index)
        else:
            self.waiting.appendleft(report.index)

    def lose(self, indices: Iterable[int], reason: str) -> None:
        """Take back the tasks of a worker that is gone."""
        for index in indices:
            if index not in self.at_work:
                continue
            self.at_work.discard(index)
            # Counted apart from failures: most workers are lost for reasons that have nothing to do with their task.
            self.losses[index] = self.losses.get(index, 0) + 1
            if self.losses[index] >= MAX_LOSSES:
                self._set_aside(index, f"lost {MAX_LOSSES} workers, the last: {reason}", reason)
            else:
                self.waiting.appendleft(index)

    def give_back(self, indices: Iterable[int]) -> None:
        """Take back tasks that were handed out and never begun."""
        for index in indices:
            if index in self.at_work:
                self.at_work.discard(index)
                self.waiting.appendleft(index)

    def drop(self, indices: Iterable[int]) -> None:
        """Forget tasks that are not begun."""
        self.dropped |= (found := set(indices))
        if found:
            self.waiting = deque(index for index in self.waiting if index not in found)
            for index in found:
                self.blocked.pop(index, None)

    def _set_aside(self, index: int, reason: str, details: str) -> None:
        self.set_aside[index] = SetAside(index=index, reason=reason, details=details)
        self.news.append(self.set_aside[index])
        for other in [other for other, needed in self.blocked.items() if index in needed]:
            if self.blocked.pop(other, None) is not None:  # may have gone with another one that needed the same
                self._set_aside(other, f"task {index}, which it needs, was set aside: {reason}", details)
