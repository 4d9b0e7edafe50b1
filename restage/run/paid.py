"""Answers that cost something, kept so that nothing is paid for twice, and limits on what may be spent.

A request that was sent and whose answer never came to disk leaves a mark: it may have been paid, and is counted so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from restage.records import InputError, read_json, write_json

__all__ = ["AskingStopped", "Budget", "Limits", "PaidAnswers", "RateLimit", "Usage"]


class AskingStopped(Exception):
    """A limit of the user's was reached; what was answered before remains. The message names the limit."""


@dataclass(frozen=True)
class Usage:
    """Requests, and the tokens of those that are paid by tokens."""

    num_requests: int = 0
    num_input: int = 0
    num_output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.num_requests + other.num_requests, self.num_input + other.num_input, self.num_output + other.num_output
        )

    def __neg__(self) -> Usage:
        return Usage(-self.num_requests, -self.num_input, -self.num_output)


class PaidAnswers:
    """A folder of answers; may be shared by runs. Each file is written in one move, so a kill tears nothing."""

    def __init__(self, folder: Path, *, suffix: str = ".json") -> None:
        """Open the folder and add up what it cost so far."""
        self.folder, self._suffix = folder, suffix
        self.past = Usage()
        """Of all answers, and what was set aside for those that were lost when a session was killed."""
        self.num_lost = 0
        """Requests whose answers were lost."""
        for path in sorted(folder.glob("*/*.asked")):
            if not path.with_suffix(suffix).exists():
                write_json(path.with_suffix(".lost"), _usage_of(path.with_suffix(".lost")) + _usage_of(path))
            path.unlink(missing_ok=True)
        for path in sorted(folder.glob("*/*.lost")):
            lost = _usage_of(path)
            self.num_lost += lost.num_requests
            self.past += lost
        for path in sorted(folder.glob(f"*/[!.]*{suffix}")):
            self.past += self.usage_of(path)

    def usage_of(self, path: Path) -> Usage:
        """Return what an answer cost that is kept in a file."""
        return Usage(1)

    def path(self, request_id: str, suffix: str = "") -> Path:
        """Return where the answer to a request is kept, or another file of the request."""
        name = request_id.rpartition("-")[2]
        return self.folder / name[:2] / f"{name}{suffix or self._suffix}"

    def mark_asked(self, request_id: str, reserved: Usage) -> None:
        """Leave a mark before a request is sent."""
        write_json(self.path(request_id, ".asked"), reserved)

    def lose(self, request_id: str) -> None:
        """Count a request as paid whose answer is of no use."""
        path = self.path(request_id, ".lost")
        write_json(path, _usage_of(path) + _usage_of(path.with_suffix(".asked")))
        self.unmark(request_id)

    def unmark(self, request_id: str) -> None:
        """Take the mark away: the request certainly cost nothing, or its answer is kept."""
        self.path(request_id, ".asked").unlink(missing_ok=True)


def _usage_of(path: Path) -> Usage:
    try:
        return read_json(path, Usage)
    except InputError:
        return Usage()


class RateLimit:
    """A token bucket that fills evenly and holds ten seconds' worth, so that bursts are short and the rate holds."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with a full bucket; a rate of 0 is no limit, and `clock` gives seconds."""
        self._per_second = per_minute / 60
        self._room = max(per_minute / 6, 1.0)
        self._level = self._room
        self._clock = clock
        self._filled_s = clock()
        self._lock = threading.Lock()

    def take(self, units: float | int) -> float:
        """Take units, and return how many seconds to wait before using them; negative units are given back."""
        if not self._per_second:
            return 0.0
        with self._lock:
            now = self._clock()
            self._level = min(self._room, self._level + (now - self._filled_s) * self._per_second)
            self._filled_s = now
            # The level may fall below zero: later callers then wait behind this one, in turn.
            self._level -= units
            return max(0.0, -self._level / self._per_second)


@runtime_checkable
class Limits(Protocol):
    """What a user is ready to spend."""

    def cost(self, usage: Usage) -> float:
        """Return the cost of some usage."""
        ...

    def refusal(self, spent: Usage, total: Usage, needed: Usage) -> str:
        """Return why a request is not sent that may need so much and lead to this total; empty if it may go."""
        ...


class Budget:
    """Adds up what was spent and what requests under way may still cost; refuses what could exceed the limit."""

    def __init__(self, limits: Limits, past: Usage) -> None:
        """Start with what was spent in earlier sessions."""
        self._limits = limits
        self._reserved = Usage()
        self._settled = threading.Condition()
        self.spent = past

    def cost(self, usage: Usage) -> float:
        """Return the cost of some usage."""
        return self._limits.cost(usage)

    def reserve(self, usage: Usage) -> None:
        """Set aside what a request may cost at most, waiting for others if need be; AskingStopped beyond a limit."""
        with self._settled:
            # Requests mostly cost less than was set aside, so only when none is left under way is a refusal final.
            while reason := self._limits.refusal(self.spent, self.spent + self._reserved + usage, usage):
                if not self._reserved.num_requests:
                    raise AskingStopped(reason)
                self._settled.wait()
            self._reserved += usage

    def settle(self, reserved: Usage, spent: Usage) -> None:
        """Replace what was set aside for a request by what it did cost."""
        with self._settled:
            self._reserved += -reserved
            self.spent += spent
            self._settled.notify_all()
