"""How much memory a piece of work needed: the process's high-water mark, set back when the work begins.

`edit` and `compare` measure methods with it, `records` whole sessions.
"""

from __future__ import annotations

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path

__all__ = ["PeakMemory", "process_peak_mb"]

_before_resets: list[float] = [0.0]
"""Highest mark of the process so far that was set back, in MiB."""


class PeakMemory:
    """Most memory that this process holds from now on.

    Linux lets a process set its high-water mark back to what it holds now (`5` into `/proc/self/clear_refs`, proc(5)),
    so that a mark belongs to one piece of work: libraries, models and whatever else is loaded count, what earlier
    work held and gave back does not. Elsewhere, and where that file must not be written, the mark is that of the
    process since it began, an upper bound.
    """

    def __init__(self) -> None:
        """Begin to measure."""
        before_mb = _mark_mb()
        self.is_own = _reset()
        """Whether the mark belongs to this piece of work alone."""
        if self.is_own:
            _before_resets[0] = max(_before_resets[0], before_mb)

    def read_mb(self) -> float:
        """The mark in MiB; work that begins to measure in between takes it over, so read it before."""
        return _mark_mb() if self.is_own else process_peak_mb()


def process_peak_mb() -> float:
    """Most memory that this process has held since it began, in MiB."""
    return max(_before_resets[0], _mark_mb())


def _reset() -> bool:
    if platform.libc_ver()[0] == "glibc":  # freed memory that is kept for later belongs to no work
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _mark_mb() -> float:
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
