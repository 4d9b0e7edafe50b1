"""What a container or a batch system leaves to this process: cores by affinity and quota, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["allowed_cores", "cpu_quota", "free_memory_bytes", "num_usable_cores"]

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders in which the limits of this process's control groups, and of those around them, may lie."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        # The one line of version 2 names no controllers; version 1 has a tree for each.
        if not controllers or controller in controllers.split(","):
            root = GROUPS / controller if controllers else GROUPS
            own = root / path.strip("/")
            # Inside a container the path may be that of the host, of which only the root can be seen.
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir())


def _numbers(folder: Path, name: str) -> list[float]:
    """Return the numbers of a file, infinite for `max` and for what version 1 has instead; empty without the file."""
    try:
        words = (folder / name).read_text().split()
    except OSError:
        return []
    values = [math.inf if word == "max" else float(word) for word in words]
    return [math.inf if value < 0 or value >= 2**60 else value for value in values]


def cpu_quota() -> float:
    """Return how many cores the processor time that control groups grant amounts to; infinite without a limit."""
    quota = math.inf
    for folder in _groups("cpu"):
        found = _numbers(folder, "cpu.max") or [
            *_numbers(folder, "cpu.cfs_quota_us"),
            *_numbers(folder, "cpu.cfs_period_us"),
        ]
        if len(found) == 2:
            quota = min(quota, found[0] / found[1])
    return quota


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def num_usable_cores() -> int:
    """Return how many threads can compute at once, at least 1: by affinity, and by quota, rounded down."""
    # One thread more than the quota has cores, and all stand still for a part of every tenth of a second.
    return max(1, int(min(len(allowed_cores()), cpu_quota())))


def free_memory_bytes() -> int:
    """Return how much memory can still be taken: what the system has available, and control groups allow."""
    import psutil

    free = float(psutil.virtual_memory().available)
    for folder in _groups("memory"):
        limit = _numbers(folder, "memory.max") or _numbers(folder, "memory.limit_in_bytes")
        used = _numbers(folder, "memory.current") or _numbers(folder, "memory.usage_in_bytes")
        if limit and used:
            free = min(free, limit[0] - used[0] + _cache_bytes(folder))
    return max(0, int(free))


def _cache_bytes(folder: Path) -> float:
    """Return what a group's files take of its memory and would give back."""
    try:
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return 0.0
    return float(rows.get("total_inactive_file") or rows.get("inactive_file") or 0)
