"""A diagnosis as a kind of work: models to train and scenes to fit that no run has, and trials with them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.diagnose.cases import Case
from restage.diagnose.trials import Kind, Trial, Trials
from restage.diagnose.workbench import Mix, Workbench
from restage.records import Progress
from restage.work.task import Facts, Task

__all__ = ["Attempt", "DiagnosisWork"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One trial that is wanted."""

    case: Case
    kind: Kind
    from_b: frozenset[str]
    """Parts that come from B; see `Workbench.setup`."""

    def __str__(self) -> str:
        return f"{self.case.name}, {self.kind}, {', '.join(sorted(self.from_b)) or 'nothing'} of B"


@dataclass(frozen=True)
class DiagnosisWork:
    """Bench and trials; both leave behind what they have loaded when they are sent to another process."""

    bench: Workbench
    trials: Trials

    def open(self, device: str) -> DiagnosisWork:
        """Returns itself: whatever is heavy is loaded when a task needs it."""
        return self

    def found(self, task: Task[Any]) -> Facts | None:
        """Nothing but `note` if the model, scene or trial is there."""
        if isinstance(task.item, Mix):
            is_there = self.bench.is_made(task.item)
        else:
            path = self.path(task.item)
            is_there = path is not None and path.exists()
        return {"note": "done before"} if is_there else None

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Train, fit, or try."""
        if isinstance(task.item, Mix):
            yield from self.bench.make(task.item)
        else:
            self.trial(task.item)
        return {"note": "done"}

    def path(self, attempt: Attempt) -> Path | None:
        """Returns where a trial is kept; None as long as something that it needs is not there."""
        if not all(map(self.bench.is_made, self.bench.mixes(attempt.case, attempt.from_b))):
            return None
        return self.trials.path(self.bench.setup(attempt.case, attempt.from_b), attempt.kind, 0)

    def trial(self, attempt: Attempt) -> Trial:
        """Make a trial, or read it."""
        return self.trials.run(self.bench.setup(attempt.case, attempt.from_b), attempt.kind, 0)
