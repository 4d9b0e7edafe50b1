"""Where work is done, and what an engine tells the driver while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from restage.records import InputError, Progress
from restage.work.queue import SetAside, TaskQueue
from restage.work.task import Report
from restage.work.worker import WorkerSettings

__all__ = ["Engine", "EngineConfig", "Event", "Shared", "Stepped", "Tick", "WorkerLost"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where work is done. Nothing here changes the result: with equal threads, bit for bit."""

    engine: Literal["inline", "local", "ray"] | None = None
    """In this process; in processes of this machine, one a device; or on a Ray cluster (restage[cluster]). Default:
    inline, or local with several workers or --when-idle."""
    workers: int | None = None
    """Workers at once; default: one a GPU, else one a CPU thread group; on a cluster as many as it has room for."""
    threads: int | None = None
    """CPU threads of each worker, which results on a CPU depend on; default: 1 beside other workers, and inline what
    the stage takes by itself."""
    when_idle: bool = False
    """Leave a device that someone else uses, and give way when they come (local and ray)."""
    address: str | None = None
    """Address of the Ray cluster, such as `auto` or `10.0.0.1:6379`; default: RAY_ADDRESS, else a cluster of this
    machine."""
    max_attempts: int = 3
    """Failures after which a task is set aside with its traceback, while the others go on."""
    grace_s: float = 10.0
    """Seconds that workers get to end their step when the work is stopped."""
    poll_s: float = 30.0
    """Seconds until a device that someone else uses is looked at again."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.grace_s < 0 or self.poll_s <= 0:
            raise InputError("grace_s must be at least 0, poll_s above 0")
        needs_processes = self.when_idle or (self.workers or 1) > 1
        if self.engine is None:
            object.__setattr__(self, "engine", "local" if needs_processes else "inline")
        elif self.engine == "inline" and needs_processes:
            raise InputError("--workers and --when-idle need other processes; choose --engine local or ray")


@dataclass(frozen=True)
class Stepped:
    """A task has come a step further; only an engine in this process says so."""

    index: int
    progress: Progress


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, or was sent away."""

    worker: str
    reason: str
    is_for_good: bool = False
    """Whether it is not replaced."""


@dataclass(frozen=True)
class Tick:
    """Nothing happened; time for the caller to look around."""

    num_workers: int = 0


@dataclass(frozen=True)
class Shared:
    """Another driver does tasks of the same folder; from now on the two share the work."""


Event = Report | Stepped | WorkerLost | Tick | SetAside | Shared


Engine = Callable[[TaskQueue, WorkerSettings, EngineConfig], Iterator[Event]]
"""Has tasks done until the queue is finished, and tells the queue of every report and loss before it yields it; when
closed early it stops its workers. Raises InputError if no worker can do any task."""
