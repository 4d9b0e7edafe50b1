"""What one worker does with one task, whatever its kind: see whether it is there, do it step by step, report.

The same code runs in this process (`inline`), in a process per device (`local`) and in a Ray actor (`ray_cluster`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from restage.records import InputError, Progress, is_disk_full
from restage.run.environment import versions
from restage.work.idle import DeviceWatch
from restage.work.task import Facts, OpenWork, Report, Status, Task, Work

__all__ = ["Worker", "WorkerSettings", "devices", "restored_threads"]

LOOK_S = 1.0
"""Seconds between looks at who else uses the device: steps may be much shorter than the call of nvidia-smi."""


def devices(*, uses_gpu: bool = True) -> list[str]:
    """The GPUs of this machine, if they are of use; else its CPU."""
    if not uses_gpu:
        return ["cpu"]
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def _versions() -> dict[str, str]:
    """Versions of the packages that results depend on, without local parts such as `+cpu`."""
    return {name: version.partition("+")[0] for name, version in versions().items()}


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What every worker is told."""

    work: Work
    threads: int | None = None
    """CPU threads of the worker; None leaves the libraries' own choice."""
    is_polite: bool = False
    """Whether to leave a device that someone else uses."""
    uses_gpu: bool = True
    """Whether the work gains from a GPU; if not, workers are placed by cores."""
    folder: str = field(default_factory=os.getcwd)
    """The driver's working folder, for paths that are relative to it."""
    versions: dict[str, str] = field(default_factory=_versions)
    """Versions of the packages that the driver has installed."""


def _limit_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
    # Compiled loops have threads of their own, which only exist if somebody has imported numba.
    if numba := sys.modules.get("numba"):
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


@contextlib.contextmanager
def restored_threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads within it, and with as many as before afterwards; None changes nothing."""
    if count is None:
        yield
        return
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    _limit_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


class Worker:
    """Works through tasks on one device; loads what is heavy at the first task that it is free for."""

    def __init__(
        self, settings: WorkerSettings, device: str = "cpu", *, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Prepare; nothing heavy is loaded yet. `is_stopping` is asked between steps."""
        self.settings, self.device, self.is_stopping = settings, device, is_stopping
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.watch = DeviceWatch(device, num_own_threads=settings.threads or 1)
        self.opened: OpenWork | None = None
        self.looked_s = -LOOK_S

    def open(self) -> OpenWork:
        """Load what the work needs, once; refuses a machine that is not set up as the driver's."""
        if self.opened is None:
            if _versions() != self.settings.versions:
                raise InputError(f"packages here are {_versions()}, the driver's {self.settings.versions}")
            if os.path.isdir(self.settings.folder):
                os.chdir(self.settings.folder)  # an actor begins wherever its node was started
            if self.settings.threads is not None:
                _limit_threads(self.settings.threads)
            if self.device.startswith("cuda"):
                import torch

                torch.cuda.set_device(self.device)  # what asks for `cuda` gets this worker's own
            self.watch.before_load()
            self.opened = self.settings.work.open(self.device)
            self.watch.after_load()
        return self.opened

    def steps(self, task: Task[Any]) -> Iterator[Progress | Report]:
        """Do a task; yields its steps, and its report last. Errors are raised."""
        started_s = time.monotonic()
        found = self.open().found(task)
        if found is not None:
            yield self._report(task, "found", facts=found)
            return
        facts = yield from self.open().work(task)
        yield self._report(task, "done", seconds=time.monotonic() - started_s, facts=facts)

    def work(self, task: Task[Any]) -> Report:
        """Do a task; whatever goes wrong is in the report."""
        if self._must_give_way():
            return self._report(task, "busy")
        try:
            self.open()
        except Exception as error:  # whatever keeps this worker from beginning, another one may be spared
            return self._report(task, "unfit", error)
        steps = self.steps(task)
        try:
            for step in steps:
                if isinstance(step, Report):
                    return step
                if self.is_stopping():
                    return self._report(task, "stopped")
                if self._must_give_way():
                    return self._report(task, "gave way")
            raise RuntimeError("the work ended without a report")
        except Exception as error:  # a task that fails is a report, and the worker goes on
            return self._report(task, "disk full" if is_disk_full(error) else "failed", error)
        finally:
            steps.close()  # pyright: ignore[reportAttributeAccessIssue]

    def _must_give_way(self) -> bool:
        """Whether someone else uses the device, and this worker is to leave it then."""
        if not self.settings.is_polite or time.monotonic() - self.looked_s < LOOK_S:
            return False
        self.looked_s = time.monotonic()
        return not self.watch.is_free()

    def _report(
        self,
        task: Task[Any],
        status: Status,
        error: Exception | None = None,
        *,
        seconds: float = 0.0,
        facts: Facts | None = None,
    ) -> Report:
        return Report(
            index=task.index,
            status=status,
            worker=self.name,
            device=self.device,
            seconds=seconds,
            facts=facts or {},
            reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}" if error else "",
            details="".join(traceback.format_exception(error)) if error else "",
        )
