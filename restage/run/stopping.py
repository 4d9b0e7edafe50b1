"""A stop asked for by a signal: it interrupts at once, and is remembered.

An interrupt that reaches compiled code comes out of it as another error (numba's `SystemError`), or is swallowed there.
What is remembered tells such an error from a real one, and stops the work at its next step.
"""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["is_stop_requested", "stop_on_signals"]

_requests: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    _requests.append(number)
    raise KeyboardInterrupt


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM stop this process; a shell starts background jobs with the first one ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def is_stop_requested() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(_requests)
