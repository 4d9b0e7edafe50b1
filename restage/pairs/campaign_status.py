"""How a campaign stands, in words and as a record: yield, pace, time and disk left, failures by reason.

All times are of the monotonic clock: a clock that is set changes nothing.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from restage.work.task import Report

__all__ = ["Estimate", "Tally", "bytes_text", "seconds_text"]


def seconds_text(seconds: float) -> str:
    """A time as a person says it: `40 s`, `12 min`, `2 h 10 min`, `3 days 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def bytes_text(count: int) -> str:
    """A size as a person says it: `12 MB`, `3.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the rest of a campaign will take, from a measured probe."""

    num_tasks: int
    """Tasks still to be made."""
    num_pairs: int
    num_workers: int
    seconds: float
    """Time at the pace of the worker that was measured, shared by the workers that are there."""
    num_bytes: int
    """Room that the missing shards will take."""
    free_bytes: int | None
    """Room in the store; None where it cannot be known."""
    acceptance: float
    """Share of accepted pairs in the probe."""
    cost_per_hour: float
    """Cost of one worker."""

    MARGIN = 1.1

    @property
    def cost(self) -> float:
        """Cost of all worker hours, in the currency of `cost_per_hour`."""
        return self.num_workers * self.seconds / 3600 * self.cost_per_hour

    @property
    def has_room(self) -> bool:
        """Whether the store has room for the missing shards, with a tenth to spare."""
        return self.free_bytes is None or self.free_bytes >= self.MARGIN * self.num_bytes

    def __str__(self) -> str:
        accepted = self.acceptance * self.num_pairs
        room = "" if self.free_bytes is None else f" of {bytes_text(self.free_bytes)} free"
        text = (
            f"{self.num_tasks} tasks, {self.num_pairs} pairs: {seconds_text(self.seconds)} "
            f"with {self.num_workers} worker{'s' if self.num_workers != 1 else ''}, "
            f"{bytes_text(self.num_bytes)}{room}, {self.acceptance:.0%} accepted"
        )
        if self.cost_per_hour:
            each = f"{self.cost / accepted:.4f} an accepted pair" if accepted else "none accepted in the probe"
            text += f", cost {self.cost:.2f} ({each})"
        return text


@dataclass
class Tally:
    """Counts of a campaign, report by report; its size does not grow with the number of tasks."""

    num_tasks: int
    num_pairs: int
    done_tasks: int = 0
    done_pairs: int = 0
    """Pairs that are done, those of earlier sessions included."""
    made_pairs: int = 0
    """Pairs that were made in this session."""
    judged_pairs: int = 0
    """Pairs whose verdicts were reported in this session."""
    accepted_pairs: int = 0
    """Those of them that were accepted."""
    made_bytes: int = 0
    made_tasks: int = 0
    work_s: float = 0.0
    """Time that workers have spent on tasks that they finished."""
    num_lost_workers: int = 0
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    by_device: dict[str, list[float]] = field(default_factory=dict)
    """Pairs and seconds by machine and device."""
    resting: set[str] = field(default_factory=set)
    """Workers whose device someone else uses."""
    started_s: float = field(default_factory=time.monotonic)
    """When the first task was begun."""

    def add(self, report: Report) -> None:
        """Count a report."""
        if report.status in ("busy", "gave way"):
            self.resting.add(report.worker)
        else:
            self.resting.discard(report.worker)
        if report.is_over:
            self.done_tasks += 1
            self.done_pairs += report.facts["num_pairs"]
            self.judged_pairs += report.facts["num_pairs"]
            self.accepted_pairs += report.facts["num_accepted"]
        if report.status == "done":
            if not self.made_tasks:
                self.started_s = time.monotonic() - report.seconds  # models are loaded: only now is it work
            self.made_tasks += 1
            self.made_pairs += report.facts["num_pairs"]
            self.made_bytes += report.facts["num_bytes"]
            self.work_s += report.seconds
            device = self.by_device.setdefault(f"{report.worker.partition(':')[0]} {report.device}", [0.0, 0.0])
            device[0] += report.facts["num_pairs"]
            device[1] += report.seconds
        if report.reason:
            kind = report.reason.partition(":")[0] if len(self.failures) > 50 else report.reason
            self.failures[kind] += 1

    @property
    def acceptance(self) -> float:
        """Share of accepted pairs among those this session has seen."""
        return self.accepted_pairs / max(self.judged_pairs, 1)

    @property
    def pairs_per_s(self) -> float:
        """Pace of all workers together in this session."""
        return self.made_pairs / max(time.monotonic() - self.started_s, 1e-9)

    @property
    def left_s(self) -> float:
        """Time left at this pace."""
        return (self.num_pairs - self.done_pairs) / self.pairs_per_s if self.made_pairs else float("nan")

    def note(self, num_workers: int, free_bytes: int | None) -> str:
        """Returns the state in one line."""
        parts = [f"{self.acceptance:.0%} accepted", f"{self.pairs_per_s:.2g} pairs/s of {num_workers} workers"]
        if self.made_pairs and self.done_pairs < self.num_pairs:
            parts.append(f"{seconds_text(self.left_s)} left")
        if free_bytes is not None:
            parts.append(f"{bytes_text(free_bytes)} free")
        if self.resting:
            parts.append(f"{len(self.resting)} rest while others use their device")
        if self.num_lost_workers:
            parts.append(f"{self.num_lost_workers} workers lost")
        parts += [f"{count} x {reason[:60]}" for reason, count in self.failures.most_common(2)]
        return ", ".join(parts)

    def record(self) -> Mapping[str, Any]:
        """Returns the state as JSON values."""
        return {
            "tasks": {"all": self.num_tasks, "done": self.done_tasks},
            "pairs": {"all": self.num_pairs, "done": self.done_pairs, "made_now": self.made_pairs},
            "acceptance": round(self.acceptance, 4),
            "pairs_per_s": round(self.pairs_per_s, 4),
            "hours_left": round(self.left_s / 3600, 3) if self.made_pairs else None,
            "workers_resting": len(self.resting),
            "workers_lost": self.num_lost_workers,
            "failures": dict(self.failures),
            "pairs_per_s_by_device": {
                name: round(pairs / max(seconds, 1e-9), 4) for name, (pairs, seconds) in sorted(self.by_device.items())
            },
        }
