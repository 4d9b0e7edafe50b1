"""The driver's book of tasks, in memory only: what counts is on disk, and a new driver reads it from there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from restage.work.task import Report, SetAside, Task

__all__ = ["MAX_BUNDLE", "MAX_LOSSES", "TaskQueue"]

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
            self._release(report.index)
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

    def _release(self, done: int) -> None:
        """Let go of tasks that waited for this one alone."""
        for index, needed in list(self.blocked.items()):
            needed.discard(done)
            if not needed:
                del self.blocked[index]
                self.waiting.append(index)

    def _set_aside(self, index: int, reason: str, details: str) -> None:
        self.set_aside[index] = SetAside(index=index, reason=reason, details=details)
        self.news.append(self.set_aside[index])
        for other in [other for other, needed in self.blocked.items() if index in needed]:
            if self.blocked.pop(other, None) is not None:  # may have gone with another one that needed the same
                self._set_aside(other, f"task {index}, which it needs, was set aside: {reason}", details)
