"""What a run was made with (machine, versions, commit), and how much memory a piece of work needed; see `run.json`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from restage.records import InputError

__all__ = ["BFLOAT16_FLAGS", "PeakMemory", "check_device", "choose_kernel_cache", "git_commit", "machine", "user_name"]
__all__ += ["process_peak_mb", "processor_name", "versions"]

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""What processors of x86 and ARM that compute in bfloat16 say of themselves, by the names of Linux and of torch."""
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver on Linux describes each GPU."""
PACKAGES = ("restage", "torch", "numpy", "numba", "diffusers", "transformers", "safetensors", "pyarrow", "pillow")


def check_device(name: str) -> None:
    """Refuse a device, such as `cpu` or `cuda:1`, that models cannot compute on."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a CUDA that torch lacks is an assertion
        reason = (str(error).splitlines() or ["torch cannot use it"])[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); expected cpu, or cuda with a GPU") from None


def choose_kernel_cache(package: Path) -> None:
    """Keep numba's kernels in a temporary folder if no other can be written; it refuses to start otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    while not cache.exists():
        cache = cache.parent
    if "NUMBA_CACHE_DIR" in os.environ or os.access(package, os.W_OK) or os.access(cache, os.W_OK):
        return
    if sys.platform == "win32":  # its temporary folders are each user's own
        os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "restage-kernels")
        return
    folder = Path(tempfile.gettempdir()) / f"restage-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Kernels are code: one that somebody else may write to is no place for them.
    is_own = folder.stat().st_uid == os.getuid() and not folder.is_symlink() and not folder.stat().st_mode & 0o022
    os.environ["NUMBA_CACHE_DIR"] = str(folder) if is_own else tempfile.mkdtemp(prefix="restage-kernels-")


def machine() -> dict[str, Any]:
    """Platform, Python, processor, number of cores, names of NVIDIA's GPUs, memory in GiB."""
    import psutil  # 10 ms that `restage --help` does without

    # What NVIDIA's driver on Linux says of the GPUs, without starting anything.
    texts = [path.read_text() for path in sorted(GPU_FOLDER.glob("*/information"))]
    gpus = [re.search(r"^Model:\s*(.+)", text, re.MULTILINE) for text in texts]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cpu_count": os.cpu_count(),
        "gpus": [model.group(1).strip() for model in gpus if model],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def processor_name() -> str:
    """The processor's model: whether it computes in bfloat16 decides in which precision models do."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model.group(1) if model else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def git_commit() -> str:
    """Commit of this code when it was first asked for, with `+changes` if files differed; `unknown` without git."""
    # Without locks, since to look must not write: a status that is killed would leave a lock in the user's repository.
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def user_name() -> str:
    """Return who runs this: `RESTAGE_USER`, which may be empty, else the name of the login; empty if nobody knows."""
    if (given := os.environ.get("RESTAGE_USER")) is not None:
        return given
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a number without a name, as in containers
        return ""


_before_resets: list[float] = [0.0]
"""Highest mark of the process so far that was set back, in MiB."""


class PeakMemory:
    """Most memory that this process holds from now on.

    Linux lets a process set its high-water mark back (`5` into `/proc/self/clear_refs`, proc(5)), so that what earlier
    work held and gave back does not count. Elsewhere the mark is that of the process since it began, an upper bound.
    """

    def __init__(self) -> None:
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
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not there on Windows

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
