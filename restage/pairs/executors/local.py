"""Workers in processes of this machine, one a device, each on a pipe of its own.

No queue is shared: a worker that is killed while it holds a lock would stop all others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType

from restage.pairs.campaign_queue import TaskQueue
from restage.pairs.executors.inline import devices
from restage.pairs.executors.interface import EngineConfig, Event
from restage.pairs.executors.pool import Message, WorkerHandle, run_pool
from restage.pairs.tasks import PairTask
from restage.pairs.worker import Worker, WorkerSettings

__all__ = ["run_local"]

KILL_S = 5.0

_stop_requests: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    _stop_requests.append(number)


def _serve(connection: Connection, settings: WorkerSettings, device: str) -> None:
    """A worker process: answers each task with a report until the driver is gone or asks it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the driver says what it means
    signal.signal(signal.SIGTERM, _stop)
    parent = os.getppid()

    def is_stopping() -> bool:
        return bool(_stop_requests) or os.getppid() != parent

    worker = Worker(settings, device, is_stopping=is_stopping)
    try:
        connection.send("ready")
        while not is_stopping():
            for task in connection.recv():
                if is_stopping():
                    return
                connection.send(worker.work(task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the driver is gone; what is on disk counts


class _Process:
    def __init__(self, settings: WorkerSettings, place: str) -> None:
        # Forked from a small server that has imported everything and used no device: a new worker is there at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["restage.pairs.worker"])
        self.place = place
        self.connection, theirs = context.Pipe()
        device = place.rpartition("#")[0]
        self.process = context.Process(target=_serve, args=(theirs, settings, device), daemon=True)
        self.process.start()
        theirs.close()
        self.name = f"{device} (process {self.process.pid})"

    def send(self, tasks: Sequence[PairTask]) -> None:
        try:
            self.connection.send(list(tasks))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is gone, which `wait` will say

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

    def close(self) -> None:
        pass


def local_places(config: EngineConfig) -> list[str]:
    """Places of workers on this machine: devices, numbered where a device has several."""
    found = devices()
    threads = config.threads or 1
    count = config.workers or (len(found) if found != ["cpu"] else max(1, (os.cpu_count() or 1) // threads))
    return [f"{found[number % len(found)]}#{number}" for number in range(count)]


def run_local(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Make all tasks of the queue in processes of this machine."""
    yield from run_pool(_Processes(settings, local_places(config)), queue, config)
