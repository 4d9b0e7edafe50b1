"""What a task is, how a kind of work does it, where it is done, and what the driver is told while it goes on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from restage.records import InputError, Progress

__all__ = ["EngineConfig", "Event", "Facts", "OpenWork", "Report", "SetAside", "Status", "Stepped", "Task", "Tick"]
__all__ += ["Work", "WorkerLost"]

Item = TypeVar("Item")

Facts = Mapping[str, Any]
"""A few plain values that a report brings along, such as the number of pairs in a shard; `note` is for the user."""

Status = Literal["done", "found", "failed", "busy", "gave way", "stopped", "disk full", "unfit"]
"""What became of a task: it is done; it was there already; it raised an error; it was not begun because someone else
uses the device; it was given up for someone else; it was given up because the worker is to stop; the disk is full; this
worker cannot do any task."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Item]):
    """One piece of work: what a worker that dies costs at most."""

    index: int
    kind: str = ""
    """The stage that its progress is shown under; a kind of work may have tasks of several."""
    content: str = ""
    """Content id of the result, by which a result that is there already is known."""
    item: Item
    """What to do; small, since it is sent to the worker. Its text names it to the user."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of a task."""

    index: int
    status: Status
    worker: str
    device: str = ""
    seconds: float = 0.0
    facts: Facts = field(default_factory=dict)
    """What the kind of work has to say of a result."""
    reason: str = ""
    """The error in one line; empty if there was none."""
    details: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the task's result is there."""
        return self.status in ("done", "found")


@runtime_checkable
class OpenWork(Protocol):
    """A kind of work that is ready on one device."""

    def found(self, task: Task[Any]) -> Facts | None:
        """Facts of the task's result if it is there already: made before a worker was lost, or by another driver."""

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Do a task, return facts of its result; given up between two steps, it leaves nothing that counts."""


@runtime_checkable
class Work(Protocol):
    """A kind of work: small and picklable; it is sent to every worker."""

    def open(self, device: str) -> OpenWork:
        """Load whatever is heavy on a device; refuses a machine that lacks what it needs."""


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


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A task that was given up."""

    index: int
    reason: str
    details: str


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


@dataclass(frozen=True)
class Tick:
    """Nothing happened; time for the caller to look around."""

    num_workers: int = 0


Event = Report | Stepped | WorkerLost | Tick | SetAside
