"""Answers of a language model on disk, a file for each request, so that nothing is paid twice; limits on requests.

A request that was sent and whose answer never came to disk leaves a mark: it may have been paid, and is counted so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.prompts.llm_config import LlmLimits
from restage.prompts.orders import WritingStopped
from restage.records import InputError, read_json, write_json

__all__ = ["AnswerCache", "Budget", "RateLimit", "Reply", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens of requests."""

    num_requests: int = 0
    num_input: int = 0
    num_output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.num_requests + other.num_requests, self.num_input + other.num_input, self.num_output + other.num_output
        )

    def cost(self, input_price: float, output_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.num_input * input_price + self.num_output * output_price) / 1e6


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered."""

    content: str
    refusal: str = ""  # why it would not answer, in its words
    finish_reason: str = ""  # `stop`, `length`, `content_filter`, or whatever the server says
    usage: Usage = Usage()


@dataclass(frozen=True)
class _Kept:
    reply: Reply


class AnswerCache:
    """A folder of answers; may be shared by runs. Each file is written in one move, so a kill tears nothing."""

    def __init__(self, folder: Path) -> None:
        """Open the folder and add up what it cost so far."""
        self.folder = folder
        self.past = Usage()
        """Of all answers, and what was set aside for those that were lost when a session was killed."""
        self.num_lost = 0
        """Requests whose answers were lost."""
        for path in sorted(folder.glob("*/*.asked")):
            if not path.with_suffix(".json").exists():
                write_json(path.with_suffix(".lost"), _usage_of(path.with_suffix(".lost")) + _usage_of(path))
            path.unlink()
        for path in sorted(folder.glob("*/*.lost")):
            lost = _usage_of(path)
            self.num_lost += lost.num_requests
            self.past += lost
        for path in sorted(folder.glob("*/*.json")):
            if (reply := self._read(path)) is not None:
                self.past += reply.usage

    def _path(self, request_id: str, suffix: str) -> Path:
        name = request_id.removeprefix("request-")
        return self.folder / name[:2] / f"{name}{suffix}"

    @staticmethod
    def _read(path: Path) -> Reply | None:
        try:
            return read_json(path, _Kept).reply
        except InputError:
            return None  # a file that a failing disk spoilt is asked for again

    def find(self, request_id: str) -> Reply | None:
        """The answer to a request, if it was ever given."""
        return self._read(self._path(request_id, ".json"))

    def mark_asked(self, request_id: str, reserved: Usage) -> None:
        """Leave a mark before a request is sent."""
        write_json(self._path(request_id, ".asked"), reserved)

    def unmark(self, request_id: str) -> None:
        """Take the mark away: the request certainly cost nothing."""
        self._path(request_id, ".asked").unlink(missing_ok=True)

    def keep(self, request_id: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Write an answer, then take the mark away."""
        write_json(self._path(request_id, ".json"), {"request": request, "reply": reply})
        self.unmark(request_id)


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


class Budget:
    """Adds up what was spent and what requests under way may still cost; refuses what could exceed the limit."""

    def __init__(self, limits: LlmLimits, past: Usage) -> None:
        """Start with what was spent in earlier sessions."""
        self._limits = limits
        self._reserved = Usage()
        self._settled = threading.Condition()
        self.spent = past

    def cost(self, usage: Usage) -> float:
        """Return the cost of some usage."""
        return usage.cost(self._limits.input_price, self._limits.output_price)

    def reserve(self, usage: Usage) -> None:
        """Set aside what a request may cost at most, waiting for others if need be; WritingStopped beyond a limit."""
        with self._settled:
            # Requests mostly cost less than was set aside, so only when none is left under way is a refusal final.
            while reason := self._reason_against(usage):
                if not self._reserved.num_requests:
                    raise WritingStopped(reason)
                self._settled.wait()
            self._reserved += usage

    def _reason_against(self, usage: Usage) -> str:
        limits, total = self._limits, self.spent + self._reserved + usage
        if limits.max_cost is not None and self.cost(total) > limits.max_cost:
            return (
                f"the cost limit of {limits.max_cost:g} is reached: {self.cost(self.spent):.4g} is spent and the "
                f"next request may cost {self.cost(usage):.4g}; raise --llm.limits.max-cost to go on"
            )
        if limits.max_tokens is not None and total.num_input + total.num_output > limits.max_tokens:
            used = self.spent.num_input + self.spent.num_output
            return (
                f"the limit of {limits.max_tokens} tokens is reached: {used} are used; "
                "raise --llm.limits.max-tokens to go on"
            )
        return ""

    def settle(self, reserved: Usage, spent: Usage) -> None:
        """Replace what was set aside for a request by what it did cost."""
        with self._settled:
            self._reserved += Usage(-reserved.num_requests, -reserved.num_input, -reserved.num_output)
            self.spent += spent
            self._settled.notify_all()
