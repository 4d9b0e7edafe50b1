"""What a task is, how a kind of work does it, and what is reported of it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from restage.records import Progress

__all__ = ["Facts", "OpenWork", "Report", "Status", "Task", "Work"]

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
    """Number of the task among all of its kind of work."""
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
    """Its traceback."""

    @property
    def is_over(self) -> bool:
        """Whether the task's result is there."""
        return self.status in ("done", "found")


@runtime_checkable
class OpenWork(Protocol):
    """A kind of work that is ready on one device."""

    def found(self, task: Task[Any]) -> Facts | None:
        """Facts of the task's result if it is there already: made before a worker was lost, or by another driver."""
        ...

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Do a task, return facts of its result; given up between two steps, it leaves nothing that counts."""
        ...


@runtime_checkable
class Work(Protocol):
    """A kind of work: small and picklable; it is sent to every worker."""

    def open(self, device: str) -> OpenWork:
        """Load whatever is heavy on a device; refuses a machine that lacks what it needs."""
        ...
