"""Which tasks of a campaign wait, are being made, are done, or are set aside: the driver's book.

The book is in memory only; what counts is on disk, and a new driver reads it from there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from restage.pairs.tasks import PairTask, TaskPlan
from restage.pairs.worker import TaskReport

__all__ = ["SetAside", "TaskQueue"]

BUNDLE_S = 2.0
"""Work that goes to a worker in one message: tasks of minutes go alone, tiny ones together."""
MAX_BUNDLE = 256
MAX_LOSSES = 8
"""Workers that may be lost over one task, before the task is taken for the cause."""


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A task that was given up."""

    index: int
    reason: str
    details: str


class TaskQueue:
    """Hands out tasks, takes back those of lost workers, gives up those that fail again and again."""

    def __init__(self, plan: TaskPlan, missing: Iterable[int], *, max_attempts: int) -> None:
        """Start with the missing tasks.

        Args:
            plan: builds the tasks.
            missing: numbers of tasks to make, in the order in which they are handed out.
            max_attempts: failures after which a task is set aside.
        """
        self.plan, self.max_attempts = plan, max_attempts
        self.waiting: deque[int] = deque(missing)
        self.at_work: set[int] = set()
        self.failures: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.set_aside: dict[int, SetAside] = {}
        self.is_probing = True
        """While set, a single task is out: the probe that the estimate is made from."""
        self.mean_task_s = BUNDLE_S

    @property
    def is_finished(self) -> bool:
        """Whether every task is done or set aside."""
        return not self.waiting and not self.at_work

    def take(self, num_workers: int) -> list[PairTask]:
        """Hand out the next tasks for one worker; none if there is nothing to do for it now."""
        if self.is_probing:
            count = 0 if self.at_work else 1
        else:
            share = len(self.waiting) // (4 * max(num_workers, 1))  # towards the end nobody hoards
            count = max(1, min(MAX_BUNDLE, share, int(BUNDLE_S / max(self.mean_task_s, 1e-4))))
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
        return [self.plan[index] for index in taken]

    def report(self, report: TaskReport) -> None:
        """Note what became of a task."""
        if report.index not in self.at_work:
            return  # of a worker that was given up as lost, and was not
        self.at_work.discard(report.index)
        if report.status in ("done", "found"):
            self.failures.pop(report.index, None)
            self.losses.pop(report.index, None)
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
            self.losses[index] = self.losses.get(index, 0) + 1
            if self.losses[index] >= MAX_LOSSES:
                self._set_aside(index, f"lost {MAX_LOSSES} workers", reason)
            else:
                self.waiting.appendleft(index)

    def give_back(self, indices: Iterable[int]) -> None:
        """Take back tasks that were handed out and never begun."""
        for index in indices:
            if index in self.at_work:
                self.at_work.discard(index)
                self.waiting.appendleft(index)

    def _set_aside(self, index: int, reason: str, details: str) -> None:
        self.set_aside[index] = SetAside(index=index, reason=reason, details=details)

    def shuffle(self) -> None:
        """Go on in random order: two drivers on one folder then share the work instead of doing it twice."""
        waiting = list(self.waiting)
        random.SystemRandom().shuffle(waiting)
        self.waiting = deque(waiting)
