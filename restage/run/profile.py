"""Where the time of a run goes: seconds of its stages and of their parts, kept with each session in `run.json`.

`with timed("render"):` goes around what may be slow. It costs a tenth of a microsecond where nobody listens, and two
where a command works on a run. A part within another one counts for itself alone, so that parts add up to their stage.
What is done in other processes is not seen here, but for the time that this one waits for them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

__all__ = ["PartTime", "StageTime", "add_up", "listening", "stage", "timed"]

THREADS = Path("/proc/self/task")


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """What a part of a stage took, without the parts within it."""

    wall_s: float = 0.0
    cpu_s: float = 0.0  # of all threads
    times: int = 0


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What a stage took in one session, or in several."""

    wall_s: float = 0.0
    cpu_s: float = 0.0  # of all threads
    queued_s: float = 0.0
    """Seconds in which threads could have run and had no core, summed over threads; 0 where Linux does not say it."""
    num_threads: int = 1  # most threads that torch and numba computed with
    parts: Mapping[str, PartTime] = field(default_factory=dict)

    @property
    def all_parts(self) -> dict[str, PartTime]:
        """The parts, longest first, and last what no part accounts for."""
        rest = PartTime(
            wall_s=self.wall_s - sum(part.wall_s for part in self.parts.values()),
            cpu_s=self.cpu_s - sum(part.cpu_s for part in self.parts.values()),
        )
        return dict(sorted(self.parts.items(), key=lambda item: -item[1].wall_s)) | {"other": rest}

    def plus(self, other: StageTime) -> StageTime:
        """Return the sum of both."""
        parts = dict(self.parts)
        for name, found in other.parts.items():
            known = parts.get(name, PartTime())
            sums = {field: getattr(known, field) + getattr(found, field) for field in ("wall_s", "cpu_s", "times")}
            parts[name] = PartTime(**sums)
        return StageTime(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            queued_s=self.queued_s + other.queued_s,
            num_threads=max(self.num_threads, other.num_threads),
            parts=parts,
        )


def add_up(*sessions: Mapping[str, StageTime]) -> dict[str, StageTime]:
    """Return what each stage took in all sessions."""
    total: dict[str, StageTime] = {}
    for session in sessions:
        for name, found in session.items():
            total[name] = total.get(name, StageTime()).plus(found)
    return total


class _Used(NamedTuple):
    """What this process has used so far."""

    wall_s: float
    cpu_s: float
    queued_s: float

    @classmethod
    def now(cls) -> _Used:
        queued_ns = 0
        for thread in THREADS.glob("*/schedstat"):
            with contextlib.suppress(OSError):  # threads end
                queued_ns += int(thread.read_text().split()[1])
        return cls(time.perf_counter(), time.process_time(), queued_ns / 1e9)


class _Clock:
    """The times of one session of work."""

    def __init__(self) -> None:
        self.stages: dict[str, StageTime] = {}
        self.parts: dict[str, list[float]] = {}  # wall and CPU seconds, and times, of the present stage's parts
        self.inner: _Part | None = None
        self.nested = StageTime()
        """What stages within the present one took."""


class _Part:
    """One block that is timed."""

    __slots__ = ("began", "clock", "inner_cpu_s", "inner_wall_s", "name", "outer")

    def __init__(self, clock: _Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.outer, self.clock.inner = self.clock.inner, self
        self.inner_wall_s = self.inner_cpu_s = 0.0
        self.began = time.perf_counter(), time.process_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall_s, cpu_s = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.clock.inner = self.outer
        if self.outer is not None:
            self.outer.inner_wall_s += wall_s
            self.outer.inner_cpu_s += cpu_s
        sums = self.clock.parts.setdefault(self.name, [0.0, 0.0, 0])
        sums[0] += wall_s - self.inner_wall_s
        sums[1] += cpu_s - self.inner_cpu_s
        sums[2] += 1


class _Listening(threading.local):
    clock: _Clock | None = None  # of this thread: the viewer works on several runs at once


_listening = _Listening()
_UNTIMED = contextlib.nullcontext()


def timed(name: str) -> contextlib.AbstractContextManager[None]:
    """Count a block as a part of the present stage; nothing may be yielded within it."""
    clock = _listening.clock
    return _UNTIMED if clock is None else _Part(clock, name)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Count a block as (a piece of) a stage, without the stages within it; steps may be yielded in it."""
    clock = _listening.clock
    if clock is None:
        yield
        return
    outside, clock.parts, clock.nested = (clock.parts, clock.nested), {}, StageTime()
    began = _Used.now()
    try:
        yield
    finally:
        wall_s, cpu_s, queued_s = (now - before for now, before in zip(_Used.now(), began, strict=True))
        within = clock.nested
        parts = {name: PartTime(wall_s=wall, cpu_s=cpu, times=int(n)) for name, (wall, cpu, n) in clock.parts.items()}
        clock.parts = outside[0]
        clock.nested = outside[1].plus(StageTime(wall_s=wall_s, cpu_s=cpu_s, queued_s=queued_s))
        found = StageTime(
            wall_s=wall_s - within.wall_s,
            cpu_s=cpu_s - within.cpu_s,
            queued_s=max(0.0, queued_s - within.queued_s),  # threads that have ended took theirs along
            num_threads=_num_threads(),
            parts=parts,
        )
        clock.stages = add_up(clock.stages, {name: found})


def _num_threads() -> int:
    loaded = [module for name in ("torch", "numba") if (module := sys.modules.get(name))]
    return max((module.get_num_threads() for module in loaded), default=1)


@contextlib.contextmanager
def listening(name: str) -> Iterator[dict[str, StageTime]]:
    """Take the times of a stage, and of stages within it; the dict that it gives is filled at the end."""
    before, clock, found = _listening.clock, _Clock(), {}
    _listening.clock = clock
    try:
        with stage(name):
            yield found
    finally:
        _listening.clock = before
        found.update(clock.stages)
