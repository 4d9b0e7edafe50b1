"""One loop for workers in other processes, wherever they run: hand out, collect, replace, rest, retire.

`local` and `ray_cluster` bring the processes; whatever decides anything is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from restage.records import InputError
from restage.work.interface import EngineConfig, Event, Tick, WorkerLost
from restage.work.queue import TaskQueue
from restage.work.task import Report, Task

__all__ = ["Message", "Pool", "WorkerHandle", "run_pool"]

WAIT_S = 0.5
MAX_BAD_TASKS = 5
"""Different tasks in a row that a worker may fail before it is taken for the cause and not replaced."""
MAX_BACK_OFF_S = 30.0
"""Longest wait before a worker is replaced that died before it had done anything."""


@runtime_checkable
class WorkerHandle(Protocol):
    """A worker in another process."""

    name: str
    place: str
    """The device or slot of the cluster that it takes up, and that its successor gets."""

    def send(self, tasks: Sequence[Task[Any]]) -> None:
        """Have it work through these tasks; only called when it has none."""
        ...

    def ask_to_stop(self) -> None:
        """Ask it to give up after its present step."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


@dataclass(frozen=True)
class Message:
    """News of one worker."""

    worker: WorkerHandle
    is_ready: bool = False
    reports: tuple[Report, ...] = ()
    is_idle: bool = False
    """Whether it will say nothing more of the tasks that it has."""
    gone: str = ""
    """Why it is gone, if it is."""


@runtime_checkable
class Pool(Protocol):
    """Starts workers and hears from them."""

    def places(self) -> list[str]:
        """Returns the places that have room for a worker now."""
        ...

    def start(self, place: str) -> WorkerHandle:
        """Start a worker at a place; it says when it is ready."""
        ...

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[Message]:
        """Returns what these workers have said since, or that they are gone."""
        ...


@dataclass
class _Slot:
    worker: WorkerHandle
    is_ready: bool = False
    rests_until_s: float = 0.0
    at_work: set[int] = field(default_factory=set)


@dataclass
class _Place:
    """Remembers a place while its workers come and go."""

    num_early_losses: int = 0
    waits_until_s: float = 0.0
    bad_tasks: set[int] = field(default_factory=set)
    is_retired: bool = False
    reason: str = ""


class _Loop:
    """The driver's side of a pool; slots hold workers by their `id`, since handles need not be hashable."""

    def __init__(self, pool: Pool, queue: TaskQueue, config: EngineConfig) -> None:
        self.pool, self.queue, self.config = pool, queue, config
        self.slots: dict[int, _Slot] = {}
        self.places: dict[str, _Place] = {}

    def workers(self) -> list[WorkerHandle]:
        return [slot.worker for slot in self.slots.values()]

    def place_of(self, worker: WorkerHandle) -> _Place:
        return self.places.setdefault(worker.place, _Place())

    def grow(self) -> None:
        """Start workers where there is room."""
        now = time.monotonic()
        names = self.pool.places()
        taken = {worker.place for worker in self.workers()}
        wanted = self.config.workers or len(names)
        if not self.config.when_idle:  # a worker that rests while others use its device does no task
            wanted = min(wanted, self.queue.num_left)
        room = wanted - len(taken)
        for name in names:
            place = self.places.setdefault(name, _Place())
            if room > 0 and name not in taken and not place.is_retired and now >= place.waits_until_s:
                worker = self.pool.start(name)
                self.slots[id(worker)] = _Slot(worker)
                room -= 1

    def feed(self) -> None:
        """Give tasks to those that have none."""
        now = time.monotonic()
        for slot in self.slots.values():
            if slot.is_ready and not slot.at_work and now >= slot.rests_until_s:
                tasks = self.queue.take(num_workers=len(self.slots))
                if tasks:
                    slot.at_work = {task.index for task in tasks}
                    slot.worker.send(tasks)

    def hear(self, message: Message) -> Iterator[Event]:
        """Take in what a worker said."""
        slot = self.slots.get(id(message.worker))
        if slot is None:  # let go before its news was read
            return
        slot.is_ready = slot.is_ready or message.is_ready
        for report in message.reports:
            slot.at_work.discard(report.index)
            self.queue.report(report)
            yield report
            yield from self.judge(slot, report)
        if id(message.worker) not in self.slots:  # let go for what it reported
            return
        if message.is_idle:
            self.queue.give_back(slot.at_work)
            slot.at_work = set()
        if message.gone:
            self.queue.lose(slot.at_work, message.gone)
            yield self.let_go(slot, message.gone)

    def judge(self, slot: _Slot, report: Report) -> Iterator[Event]:
        """Decide what a report means for the worker that sent it."""
        place = self.place_of(slot.worker)
        if report.is_over:
            place.bad_tasks, place.num_early_losses = set(), 0
        elif report.status == "busy":
            slot.rests_until_s = time.monotonic() + self.config.poll_s
        elif report.status == "gave way":  # its memory on the device becomes free only when it ends
            yield self.let_go(slot, "gave way to someone else", rest_s=self.config.poll_s)
        elif report.status == "unfit":
            yield self.retire(slot, report.reason)
        elif report.status == "failed":
            place.bad_tasks.add(report.index)
            # Different tasks: one bad task fails everywhere, and says nothing about the worker.
            if len(place.bad_tasks) >= MAX_BAD_TASKS:
                yield self.retire(slot, f"failed {MAX_BAD_TASKS} tasks in a row, the last with {report.reason}")
            elif report.device.startswith("cuda"):  # an error of a GPU may stay with the process
                yield self.let_go(slot, "started anew after an error")

    def let_go(self, slot: _Slot, reason: str, *, rest_s: float = 0.0) -> WorkerLost:
        """End a worker; the tasks that it still has go back."""
        # Forgotten before it is killed: whatever it still says of a task that another one gets now is passed over.
        del self.slots[id(slot.worker)]
        slot.worker.kill()
        self.queue.give_back(slot.at_work)
        place = self.place_of(slot.worker)
        if not slot.is_ready:
            # It died while it loaded, and its successor is likely to: wait longer each time, so as not to burn the CPU.
            place.num_early_losses += 1
            rest_s = max(rest_s, min(MAX_BACK_OFF_S, 2.0**place.num_early_losses))
        place.waits_until_s = time.monotonic() + rest_s
        return WorkerLost(slot.worker.name, reason)

    def retire(self, slot: _Slot, reason: str) -> WorkerLost:
        """Let go of a worker for good."""
        place = self.place_of(slot.worker)
        place.is_retired, place.reason = True, reason
        lost = self.let_go(slot, reason)
        return WorkerLost(lost.worker, reason, is_for_good=True)

    def check(self) -> None:
        """Refuse to wait for workers that will not come."""
        places = [self.places[name] for name in self.pool.places() if name in self.places]
        if not self.slots and places and all(place.is_retired for place in places):
            raise InputError(f"no worker is left that can do the work; the last: {places[-1].reason}")
        tries = [place.num_early_losses for place in places]
        if not any(slot.is_ready for slot in self.slots.values()) and tries and min(tries) >= MAX_BAD_TASKS:
            raise InputError("workers die before they have begun; `restage doctor` says what this machine can do")

    def close(self) -> None:
        """Ask all to stop, wait a little, end those that have not."""
        deadline_s = time.monotonic() + self.config.grace_s
        for worker in self.workers():
            worker.ask_to_stop()
        # What they finish meanwhile is heard, so that the queue's book and what the user is told are right.
        while any(slot.at_work for slot in self.slots.values()) and time.monotonic() < deadline_s:
            for message in self.pool.wait(self.workers(), 0.1):
                for _ in self.hear(message):
                    pass
        for worker in self.workers():
            worker.kill()


def run_pool(pool: Pool, queue: TaskQueue, config: EngineConfig) -> Iterator[Event]:
    """Have all tasks of the queue done by the workers of a pool; refuses if no worker can do any."""
    loop = _Loop(pool, queue, config)
    try:
        while not queue.is_finished:
            loop.grow()
            loop.feed()
            for message in pool.wait(loop.workers(), WAIT_S):
                yield from loop.hear(message)
            loop.check()
            yield Tick(num_workers=sum(slot.is_ready for slot in loop.slots.values()))
    finally:
        loop.close()
