"""How many threads compute: compiled loops take the cores that nobody else uses, looked at again every few seconds.

Their results do not depend on it. Those of torch's layers do, in the last bits, so torch keeps one number of threads
for a whole stage; among small tensors, where sharing out costs more than it brings, and within `compute_parts` it has a
single one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from restage.run.limits import allowed_cores, num_usable_cores

__all__ = ["CoreWatch", "compute_parts", "follow_load", "limited_threads", "set_thread_limit", "small_tensors"]

Part = TypeVar("Part")

LOOK_S = 1.0
"""Seconds between looks at what others use."""
SHORTEST_S = 0.2
"""The system counts processor time in hundredths of a second: over less than this, the number of processes that want
to run says more."""


class CoreWatch:
    """Says how many cores others leave free; processes of lower priority than ours count as nobody."""

    def __init__(self) -> None:
        """Begin to count what is used."""
        self.cores = allowed_cores()
        self.before = self._read()

    def _read(self) -> tuple[float, float, float]:
        """Seconds by the clock, used of our cores by all, and used by this process."""
        import psutil

        rows = psutil.cpu_times(percpu=True)
        times = [rows[core] for core in self.cores if core < len(rows)]
        kinds = ["user", "system", "irq", "softirq"]
        # The system counts processes that gave way by `nice` apart; they do not have to be given way to.
        if hasattr(os, "nice") and os.nice(0) > 0:
            kinds.append("nice")
        used = sum(getattr(row, kind, 0.0) for row in times for kind in kinds)
        return time.monotonic(), used, time.process_time()

    def free(self) -> float:
        """Return how many cores others left to us since the last call, or seem to now if that was just before."""
        now = self._read()
        elapsed_s, used_s, own_s = (after - before for after, before in zip(now, self.before, strict=True))
        if elapsed_s >= SHORTEST_S:
            self.before = now
            others = max(0.0, used_s - own_s) / elapsed_s
        else:
            others = float(_num_running() - 1)
        return len(self.cores) - others


def _num_running() -> int:
    """Return how many threads of the machine want to run now, with the one that asks; 1 where that is not known."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1


class _Followed:
    """The number of threads of compiled loops, for whichever thread of this process starts them."""

    def __init__(self) -> None:
        self.watch = CoreWatch()
        self.looked_s = -math.inf
        self.limit = math.inf
        self.wanted = 1
        self.local = threading.local()  # numba keeps a number for each thread

    def number(self) -> int:
        """Return how many threads to start now; looks at the load when it is time to."""
        if time.monotonic() - self.looked_s >= LOOK_S:
            self.looked_s = time.monotonic()
            most = os.environ.get("OMP_NUM_THREADS", "")
            most = min(num_usable_cores(), int(most) if most.isdigit() else math.inf)
            self.wanted = int(max(1, min(most, math.floor(self.watch.free() + 0.5))))
        return int(min(self.wanted, self.limit))


_followed = _Followed()


def follow_load() -> None:
    """Set the number of threads of compiled loops to what others leave free; costs microseconds between two looks.

    NUMBA_NUM_THREADS, where it is set, is obeyed instead; OMP_NUM_THREADS and `limited_threads` are upper bounds.
    """
    if "NUMBA_NUM_THREADS" in os.environ:
        return
    import numba

    number = min(_followed.number(), numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportAttributeAccessIssue]
    if getattr(_followed.local, "number", 0) != number:
        numba.set_num_threads(number)
        _followed.local.number = number


def set_thread_limit(count: int) -> None:
    """Compute with so many threads from now on; compiled loops with fewer while others use the cores."""
    import torch

    torch.set_num_threads(count)
    _followed.limit = count
    # Compiled loops have threads of their own, which only exist if somebody has imported numba.
    if numba := sys.modules.get("numba"):
        _followed.local.number = min(count, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportAttributeAccessIssue]
        numba.set_num_threads(_followed.local.number)


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Set the limit within the context, and what was before it afterwards; None changes nothing."""
    if count is None:
        yield
        return
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads(), _followed.limit
    set_thread_limit(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
        _followed.limit, _followed.local.number = before[2], before[1]


@contextlib.contextmanager
def small_tensors() -> Iterator[None]:
    """Let torch compute in this thread alone within the context: handing out small tensors takes longer than they do.

    It also keeps sums, such as that of a loss, the same with any number of threads.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _part_pool() -> ThreadPoolExecutor:
    import torch

    return ThreadPoolExecutor(num_usable_cores(), "part", initializer=lambda: torch.set_num_threads(1))


def compute_parts(parts: Sequence[Callable[[], Part]]) -> list[Part]:
    """Call every part, each in a single thread of torch, several at once where others leave cores free.

    Threads of one layer wait for each other some hundred times in a call of a model, and where other processes want the
    cores, each wait is as long as the system lets those run. Parts wait once, at their end, and since none is divided,
    their results are the same with any number of threads.
    """
    number = min(len(parts), _followed.number())
    if number <= 1:
        with small_tensors():
            return [part() for part in parts]
    found: dict[int, Part] = {}
    places = itertools.count()  # whose `next` is atomic

    def work() -> None:
        while (place := next(places)) < len(parts):
            found[place] = parts[place]()

    for future in [_part_pool().submit(work) for _ in range(number)]:
        future.result()
    return [found[place] for place in range(len(parts))]
