"""Whether a device is free for us: nobody else computes on it.

A GPU is asked through `nvidia-smi`, which every driver brings; the CPU by its load average.
"""

from __future__ import annotations

import os
import shutil
import subprocess

__all__ = ["DeviceWatch"]

MAX_UTILISATION = 20
"""Percent at which a GPU counts as used when its processes cannot be seen, and ours is not on it."""
LOAD_SLACK = 0.5
"""Load beyond the machine's cores that still counts as free: the average always lags."""


def _nvidia_smi(*query: str) -> list[str]:
    """Returns the lines that nvidia-smi answers; none if it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def _gpu_name(device: str) -> str:
    """Returns the name that nvidia-smi has for a torch device; `CUDA_VISIBLE_DEVICES` may have renumbered it."""
    index = int(device.partition(":")[2] or 0)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if index < len(visible) else str(index)


class DeviceWatch:
    """Watches one device for one worker."""

    def __init__(self, device: str, *, num_own_threads: int = 1) -> None:
        """Prepare; `num_own_threads` is what the worker itself adds to the load of a CPU while it works."""
        self.device, self.num_own_threads = device, num_own_threads
        self.own: set[str] = {str(os.getpid())}
        self.before: set[str] = set()
        self.is_loaded = False

    def _processes(self) -> set[str]:
        return set(_nvidia_smi(f"--id={_gpu_name(self.device)}", "--query-compute-apps=pid"))

    def before_load(self) -> None:
        """Note who computes there before our models do."""
        if self.device.startswith("cuda"):
            self.before = self._processes()

    def after_load(self) -> None:
        """Take what is there now and was not before for us: in a container our process has another number there."""
        self.is_loaded = True
        if self.device.startswith("cuda"):
            self.own |= self._processes() - self.before

    def is_free(self) -> bool:
        """Whether nobody else uses the device now."""
        if not self.device.startswith("cuda"):
            own = self.num_own_threads if self.is_loaded else 0
            others = os.getloadavg()[0] - own
            return others + self.num_own_threads <= (os.cpu_count() or 1) + LOAD_SLACK
        if self._processes() - self.own:
            return False
        usage = _nvidia_smi(f"--id={_gpu_name(self.device)}", "--query-gpu=utilization.gpu")
        if self.is_loaded or not usage or not usage[0].isdigit():
            return True
        return int(usage[0]) <= MAX_UTILISATION
