"""Clocks and memory for benchmarks that compare works in turn, in one process."""

from __future__ import annotations

import ctypes
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Times", "in_turn", "peak_of_child", "rounds_of", "synchronize_gpu", "times"]


def synchronize_gpu() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Times(NamedTuple):
    """Seconds of one call."""

    wall: float
    cpu: float
    """Of all threads of this process: what other processes on the same cores take is not in it."""


def times(work: Callable[[], object]) -> Times:
    """Time one call."""
    synchronize_gpu()
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    synchronize_gpu()
    return Times(time.perf_counter() - start, time.process_time() - cpu_start)


def rounds_of(works: Sequence[Callable[[], object]], repeats: int) -> list[list[Times]]:
    """Times of each, measured in turn, so that all meet the same conditions; a first round is left out.

    Every other round goes in the opposite order, so that none always comes after the same one.
    """
    rounds = []
    for i in range(repeats + 1):
        found = [times(work) for work in works[:: -1 if i % 2 else 1]]
        rounds.append(found[:: -1 if i % 2 else 1])
    return rounds[1:]


def in_turn(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each."""
    columns = zip(*rounds_of(works, repeats), strict=True)
    return [statistics.median(times.wall for times in column) for column in columns]


def peak_of_child(work: Callable[[], object]) -> int:
    """Return by how many bytes a forked child's resident memory grows while it works."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # threads do not outlive a fork
        ctypes.CDLL(None).malloc_trim(0)  # memory that the parent has freed and kept would hide what is taken
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the parent: start again
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        work()
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
        os.write(send, str(peak - before).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        grown = answer.read()
    if os.waitpid(child, 0)[1] != 0 or not grown:
        raise RuntimeError("the child that measures memory failed")
    return int(grown)
