"""Does numbered pieces of a study's work: in this process, or in others, which the standard library's pool looks after.

Each process computes with one thread. One that dies costs what it was at; if it dies on the same piece alone, that
piece is given up, with the reason.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numba
import torch

from restage.studies.study import Study
from restage.studies.worker import StudyWorker

__all__ = ["Crew", "Finished", "run_tasks"]

PARENT_CHECK_S = 0.5
"""How often a worker looks whether the process that started it is still there."""


@dataclass
class Crew:
    """Who does the work; processes are started when they are needed, and kept until `close`."""

    study: Study
    folder: Path
    file: Path | None
    """Where workers read the study; None if it can be pickled."""
    workers: int
    _pool: ProcessPoolExecutor | None = None

    def pool(self) -> ProcessPoolExecutor:
        """The processes."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self.study if self.file is None else None, self.folder, self.file),
            )
        return self._pool

    def close(self, *, at_once: bool = False) -> None:
        """Let the processes go; `at_once` ends what they are at, which is made again next time."""
        if self._pool is None:
            return
        if at_once:
            for process in list((self._pool._processes or {}).values()):  # noqa: SLF001 - public from Python 3.14 on
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._pool = None


class Finished(NamedTuple):
    """A piece of work that is done, or given up."""

    number: int
    note: str


def run_tasks(crew: Crew, kind: str, numbers: Sequence[int]) -> Iterator[Finished]:
    """Do pieces of work, in any order.

    Args:
        crew: Who does it.
        kind: `scene` or `edit`.
        numbers: Which scenes, or units of the study.

    Raises:
        InputError: a scene cannot be made.
        RuntimeError: the process that made a scene ended without a word, twice.
    """
    if crew.workers == 1 or len(numbers) < 2:
        yield from _work_here(crew, kind, numbers)
        return
    left = set(numbers)
    for finished in _work_there(crew, kind, sorted(left)):
        left.discard(finished.number)
        yield finished
    for number in sorted(left):  # a process died; whose fault it was shows when each is alone
        found = list(_work_there(crew, kind, [number]))
        yield from found or [_give_up(crew, kind, number)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums come out the same however many processes share the work."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)


def _work_here(crew: Crew, kind: str, numbers: Sequence[int]) -> Iterator[Finished]:
    worker = StudyWorker(crew.study, crew.folder)
    for number in numbers:
        with one_thread():
            note = worker.work(kind, number)
        yield Finished(number, note)


def _give_up(crew: Crew, kind: str, number: int) -> Finished:
    reason = "the process ended without a word, twice; was it out of memory?"
    worker = StudyWorker(crew.study, crew.folder)
    if kind == "scene":
        raise RuntimeError(f"scene {crew.study.scenes[number].name}: {reason}")
    worker.give_up(worker.units[number], reason)
    return Finished(number, f"failed: {reason}")


def _work_there(crew: Crew, kind: str, numbers: Sequence[int]) -> Iterator[Finished]:
    """Work in other processes; ends early when one of them dies."""
    futures: dict[Future[str], int] = {crew.pool().submit(_work, kind, number): number for number in numbers}
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=futures.__getitem__):
                yield Finished(futures[future], future.result())
    except BrokenProcessPool:
        crew.close()


_here: list[StudyWorker] = []


def _start(study: Study | None, folder: Path, file: Path | None) -> None:
    """Prepare a worker process: one thread, no interrupts, and an end when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what it means
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if study is None:
        from restage.studies.file import load_study

        assert file is not None
        study = load_study(file)
    _here.append(StudyWorker(study, folder))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _work(kind: str, number: int) -> str:
    return _here[0].work(kind, number)
