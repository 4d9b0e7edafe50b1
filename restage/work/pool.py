"""One loop for workers in other processes, wherever they run: hand out, collect, replace, rest, retire. And local ones.

`ray_cluster` brings processes of other machines; whatever decides anything is here. Local workers have a pipe each: no
queue is shared, since a worker that is killed while it holds a lock would stop all others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, runtime_checkable

from restage.records import InputError
from restage.run.limits import num_usable_cores
from restage.work.task import EngineConfig, Event, Report, Task, TaskQueue, Tick, WorkerLost
from restage.work.worker import Worker, WorkerSettings, devices

__all__ = ["Message", "Pool", "WorkerHandle", "run_local", "run_pool"]

WAIT_S = 0.5
MAX_BAD_TASKS = 5
"""Different tasks in a row that a worker may fail before it is taken for the cause and not replaced."""
MAX_BACK_OFF_S = 30.0
"""Longest wait before a worker is replaced that died before it had done anything."""


@runtime_checkable
class WorkerHandle(Protocol):
    """A worker in another process."""

    name: str
    place: str  # the device or slot of the cluster that it takes up, and that its successor gets

    def send(self, tasks: Sequence[Task[Any]]) -> None:
        """Have it work through these tasks; only called when it has none."""

    def ask_to_stop(self) -> None:
        """Ask it to give up after its present step."""

    def kill(self) -> None:
        """End it now."""


@dataclass(frozen=True)
class Message:
    """News of one worker."""

    worker: WorkerHandle
    is_ready: bool = False
    reports: tuple[Report, ...] = ()
    is_idle: bool = False  # whether it will say nothing more of the tasks that it has
    gone: str = ""


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

    def grow(self) -> None:
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
        now = time.monotonic()
        for slot in self.slots.values():
            if slot.is_ready and not slot.at_work and now >= slot.rests_until_s:
                tasks = self.queue.take(num_workers=len(self.slots))
                if tasks:
                    slot.at_work = {task.index for task in tasks}
                    slot.worker.send(tasks)

    def hear(self, message: Message) -> Iterator[Event]:
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
        place = self.places[slot.worker.place]
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
        place = self.places[slot.worker.place]
        if not slot.is_ready:
            # It died while it loaded, and its successor is likely to: wait longer each time, so as not to burn the CPU.
            place.num_early_losses += 1
            rest_s = max(rest_s, min(MAX_BACK_OFF_S, 2.0**place.num_early_losses))
        place.waits_until_s = time.monotonic() + rest_s
        return WorkerLost(slot.worker.name, reason)

    def retire(self, slot: _Slot, reason: str) -> WorkerLost:
        place = self.places[slot.worker.place]
        place.is_retired, place.reason = True, reason
        return replace(self.let_go(slot, reason), is_for_good=True)

    def check(self) -> None:
        """Refuse to wait for workers that will not come."""
        places = [self.places[name] for name in self.pool.places() if name in self.places]
        if not self.slots and places and all(place.is_retired for place in places):
            raise InputError(f"no worker is left that can do the work; the last: {places[-1].reason}")
        tries = [place.num_early_losses for place in places]
        if not any(slot.is_ready for slot in self.slots.values()) and tries and min(tries) >= MAX_BAD_TASKS:
            raise InputError(
                "workers die before they have begun; `restage doctor --start` says why, if it is this machine"
            )

    def close(self) -> None:
        deadline_s = time.monotonic() + self.config.grace_s
        for slot in self.slots.values():
            slot.worker.ask_to_stop()
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


KILL_S = 5.0
"""Seconds that a killed process gets to vanish."""
PARENT_CHECK_S = 0.5
"""Seconds between looks at whether the driver is still there."""


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however long its present step takes: a new driver may be at work."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _serve(connection: Connection, settings: WorkerSettings, device: str) -> None:
    """A worker process: answers each task with a report until the driver is gone or asks it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the driver says what it means
    stop = threading.Event()
    # No interrupt is raised: compiled code would turn it into another error. The worker asks between steps.
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    worker = Worker(settings, device, is_stopping=stop.is_set)
    try:
        connection.send("ready")
        while not stop.is_set():
            for task in connection.recv():
                if stop.is_set():
                    return
                connection.send(worker.work(task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the driver is gone; what is on disk counts


class _Process:
    def __init__(self, settings: WorkerSettings, place: str) -> None:
        # Forked from a small server that has imported everything and used no device: a new worker is there at once.
        # Windows has no such server: each worker imports everything itself there.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
        work = settings.work
        if has_server:
            context.set_forkserver_preload([type(work).__module__, *getattr(work, "modules", ())])
        self.place = place
        self.connection, theirs = context.Pipe()
        device = place.rpartition("#")[0]
        self.process = context.Process(target=_serve, args=(theirs, settings, device), daemon=True)
        self.process.start()
        theirs.close()
        self.name = f"{device} (process {self.process.pid})"

    def send(self, tasks: Sequence[Task[Any]]) -> None:
        try:
            self.connection.send(list(tasks))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is gone, as `wait` will say

    def ask_to_stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(timeout=KILL_S)  # longer only if a disk hangs
        self.connection.close()

    def hear(self, worker: WorkerHandle) -> Message:
        reports = []
        is_ready, gone = False, ""
        try:
            while self.connection.poll():
                news = self.connection.recv()
                is_ready = is_ready or news == "ready"
                if news != "ready":
                    reports.append(news)
        except (EOFError, ConnectionResetError):
            self.process.join(timeout=1)
            gone = f"its process ended with code {self.process.exitcode}"
        return Message(worker, is_ready=is_ready, reports=tuple(reports), gone=gone)


class _Processes:
    def __init__(self, settings: WorkerSettings, places: Sequence[str]) -> None:
        self.settings, self.all_places = settings, places

    def places(self) -> list[str]:
        return list(self.all_places)

    def start(self, place: str) -> WorkerHandle:
        return _Process(self.settings, place)

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[Message]:
        processes = [worker for worker in workers if isinstance(worker, _Process)]
        heard = wait([process.connection for process in processes], timeout=timeout_s)
        return [process.hear(process) for process in processes if process.connection in heard]


def run_local(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Do all tasks of the queue in processes of this machine."""
    found = devices(settings.device)
    cores = max(1, num_usable_cores() // (config.threads or 1))
    count = config.workers or (cores if found == ["cpu"] else len(found))
    # Numbered, since a device may have several workers.
    places = [f"{found[number % len(found)]}#{number}" for number in range(count)]
    yield from run_pool(_Processes(settings, places), queue, config)
