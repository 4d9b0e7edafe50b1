"""Limits on requests: how many a minute, and a budget that is never overspent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from restage.prompts.answers import Usage
from restage.prompts.llm_config import LlmLimits
from restage.prompts.orders import WritingStopped

__all__ = ["Budget", "RateLimit"]


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
        """Set aside what a request may cost at most; waits for requests under way if they may leave enough.

        Raises:
            WritingStopped: the request could exceed a limit.
        """
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
