"""What one worker, wherever it runs, does with a task of any kind: see whether it is there, do it in steps, report."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from restage.records import InputError, Progress, is_disk_full
from restage.run.environment import versions
from restage.run.limits import num_usable_cores
from restage.run.threads import set_thread_limit
from restage.work.task import OpenWork, Report, Status, Task, Work

__all__ = ["DeviceWatch", "Worker", "WorkerSettings", "devices"]

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
            others = psutil.getloadavg()[0] - own
            return others + self.num_own_threads <= num_usable_cores() + LOAD_SLACK
        if self._processes() - self.own:
            return False
        usage = _nvidia_smi(f"--id={_gpu_name(self.device)}", "--query-gpu=utilization.gpu")
        if self.is_loaded or not usage or not usage[0].isdigit():
            return True
        return int(usage[0]) <= MAX_UTILISATION


LOOK_S = 1.0
"""Seconds between looks at who else uses the device: steps may be much shorter than the call of nvidia-smi."""


def devices(wanted: str) -> list[str]:
    """The devices of this machine that workers take up; see `WorkerSettings.device`."""
    if wanted != "cuda":
        return [wanted]
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
    device: str = "cuda"
    """`cpu`, where workers are placed by cores; `cuda` for every GPU of a machine, and its CPU where there is none; or
    one GPU, such as `cuda:1`."""
    folder: str = field(default_factory=os.getcwd)
    """The driver's working folder, for paths that are relative to it."""
    versions: dict[str, str] = field(default_factory=_versions)


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
                set_thread_limit(self.settings.threads)
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

    def _report(self, task: Task[Any], status: Status, error: Exception | None = None, **facts: Any) -> Report:
        if error is not None:
            facts["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            facts["details"] = "".join(traceback.format_exception(error))
        return Report(index=task.index, status=status, worker=self.name, device=self.device, **facts)
