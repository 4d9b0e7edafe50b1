"""What the campaign asks of an executor: take tasks from the queue, have them made, yield what happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from restage.pairs.campaign_queue import TaskQueue
from restage.pairs.worker import TaskReport, WorkerSettings
from restage.records import InputError

__all__ = ["BatchDone", "EngineConfig", "Event", "Executor", "Tick", "WorkerLost"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where pairs are made. Nothing here changes the result: with equal threads, bit for bit."""

    engine: Literal["inline", "local", "ray"] = "inline"
    """In this process; in a process per device of this machine; or on a Ray cluster (restage[cluster])."""
    workers: int | None = None
    """Workers at once; default: one a GPU, else one a CPU thread group; on a cluster as many as it has room for."""
    threads: int | None = None
    """CPU threads of each worker, part of what results on a CPU depend on; default: 1 beside other workers, and
    inline torch's own choice."""
    when_idle: bool = False
    """Leave a device that someone else uses, and give way when they come (local and ray)."""
    address: str | None = None
    """Of the Ray cluster, such as `auto` or `10.0.0.1:6379`; default: RAY_ADDRESS, else a cluster of this machine."""
    cost_per_hour: float = 0.0
    """Of one worker, in any currency; makes the estimate say what an accepted pair costs."""
    max_attempts: int = 3
    """Failures after which a task is set aside with its traceback, while the campaign goes on."""
    estimate_only: bool = False
    """Stop after the estimate; the probe it is made from stays."""
    grace_s: float = 10.0
    """Seconds that workers get to end their batch when the campaign is stopped."""
    poll_s: float = 30.0
    """Seconds until a device that someone else uses is looked at again."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.cost_per_hour < 0 or self.grace_s < 0 or self.poll_s <= 0:
            raise InputError("cost_per_hour and grace_s must be at least 0, poll_s above 0")
        if self.engine == "inline" and (self.when_idle or (self.workers or 1) > 1):
            raise InputError("--workers and --when-idle need other processes; add --engine local")


@dataclass(frozen=True)
class BatchDone:
    """A batch of a task is made."""

    index: int
    num_made: int
    """Pairs of the task made so far."""


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, or was sent away."""

    worker: str
    reason: str
    is_for_good: bool = False
    """It is not replaced."""


@dataclass(frozen=True)
class Tick:
    """Nothing happened; time for the caller to look around."""

    num_workers: int = 0


Event = TaskReport | BatchDone | WorkerLost | Tick


@runtime_checkable
class Executor(Protocol):
    """Makes tasks until the queue is finished; when closed early it stops its workers."""

    def __call__(self, queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
        """Make all tasks; tells the queue of every report and loss before it yields it.

        Raises:
            InputError: there is no worker that can make any.
        """
        ...
