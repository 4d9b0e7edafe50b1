"""How far a fit is, by steps or by a time budget, and whether its training loss has levelled off.

`fit.py` asks a `Schedule` after every step; what it holds is saved with a fit and goes on after a stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Schedule"]


@dataclass
class Schedule:
    """Share of a fit that is done, in [0, 1], and whether it should end.

    Without a budget the share is that of the steps. With one it is that of the time if that is further on, so that
    whatever falls with the share, such as learning rates, has fallen when the time is up. How many steps are done by
    then depends on the machine and its load: a fit with a budget is not the same bit for bit when done again.
    """

    num_steps: int
    num_views: int
    budget_s: float | None = None
    """Seconds of fitting, without the first step, which may compile kernels; None for as long as the steps take."""
    patience: int = 3
    """Passes through the views that are compared with those before them."""
    min_gain: float = 0.0
    """The loss has levelled off if the last passes are not better than those before by this share; 0: never."""
    clock: Callable[[], float] = time.perf_counter
    step: int = 0
    """Steps done."""
    elapsed_s: float = 0.0
    """Seconds since the first step of this and earlier sessions."""
    passes: list[float] = field(default_factory=list)
    """Mean training loss of each pass through all views."""
    pass_loss: float = 0.0
    """Sum over the pass that is going on."""
    last_s: float = math.nan
    """When the clock was last looked at, in this session."""

    def advance(self, loss: float) -> None:
        """Take note of a step and its loss."""
        now_s = self.clock()
        if not math.isnan(self.last_s):
            self.elapsed_s += now_s - self.last_s
        self.last_s = now_s
        self.step += 1
        self.pass_loss += loss
        if self.step % self.num_views == 0:
            self.passes.append(self.pass_loss / self.num_views)
            self.pass_loss = 0.0

    @property
    def share(self) -> float:
        """Share of the fit that is done, in [0, 1]."""
        by_steps = self.step / self.num_steps
        by_time = 0.0 if self.budget_s is None else self.elapsed_s / self.budget_s
        return min(max(by_steps, by_time), 1.0)

    @property
    def has_levelled_off(self) -> bool:
        """Whether the mean loss of the last passes is hardly below that of as many passes before.

        A pass sees every training view once, so that passes can be compared; views held out play no part.
        """
        if not self.min_gain or len(self.passes) < 2 * self.patience:
            return False
        before = sum(self.passes[-2 * self.patience : -self.patience])
        last = sum(self.passes[-self.patience :])
        return last > (1 - self.min_gain) * before

    @property
    def is_over(self) -> bool:
        """Whether steps or time are used up, or the loss has levelled off."""
        return self.share >= 1.0 or self.has_levelled_off

    def state(self) -> dict[str, Any]:
        """Everything that changes, for `torch.save`."""
        return {name: getattr(self, name) for name in ("step", "elapsed_s", "passes", "pass_loss")}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the time in between does not count."""
        for name, value in state.items():
            setattr(self, name, value)
        self.last_s = math.nan
