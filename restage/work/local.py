"""Workers in processes of this machine, one a device, each on a pipe of its own.

No queue is shared: a worker that is killed while it holds a lock would stop all others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from restage.work.interface import EngineConfig, Event
from restage.work.pool import Message, WorkerHandle, run_pool
from restage.work.queue import TaskQueue
from restage.work.task import Task
from restage.work.worker import Worker, WorkerSettings, devices

__all__ = ["run_local"]

KILL_S = 5.0
"""Seconds that a killed process gets to vanish."""
PARENT_CHECK_S = 0.5
"""Seconds between looks at whether the driver is still there."""

_stop_requests: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    # No interrupt is raised: compiled code would turn it into another error. The worker asks between steps.
    _stop_requests.append(number)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however long its present step takes: a new driver may be at work."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _serve(connection: Connection, settings: WorkerSettings, device: str) -> None:
    """A worker process: answers each task with a report until the driver is gone or asks it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the driver says what it means
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    worker = Worker(settings, device, is_stopping=lambda: bool(_stop_requests))
    try:
        connection.send("ready")
        while not _stop_requests:
            for task in connection.recv():
                if _stop_requests:
                    return
                connection.send(worker.work(task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the driver is gone; what is on disk counts


class _Process:
    def __init__(self, settings: WorkerSettings, place: str) -> None:
        # Forked from a small server that has imported everything and used no device: a new worker is there at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(settings.work).__module__])
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
    found = devices(uses_gpu=settings.uses_gpu)
    cores = max(1, (os.cpu_count() or 1) // (config.threads or 1))
    count = config.workers or (cores if found == ["cpu"] else len(found))
    # Numbered, since a device may have several workers.
    places = [f"{found[number % len(found)]}#{number}" for number in range(count)]
    yield from run_pool(_Processes(settings, places), queue, config)
