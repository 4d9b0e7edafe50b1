"""Checks of the machine: processor, memory, GPUs, threads, and how fast bf16 is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from restage.doctor import threads
from restage.doctor.findings import Finding
from restage.run.environment import BFLOAT16_FLAGS, processor_name

__all__ = ["Gpu", "check_bf16", "check_gpus", "check_memory", "check_processor", "check_threads", "query_gpus"]

ENOUGH_MEMORY_GIB = 4.0
BUSY_SHARE = 0.1
"""A GPU counts as in use if more than this share of its memory is taken."""
BF16_CAPABILITY = 8.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Gpu(NamedTuple):
    """An NVIDIA GPU as its driver reports it."""

    index: int
    name: str
    total_mib: float
    used_mib: float
    busy_percent: float
    capability: float


class Processor(NamedTuple):
    """What this process may compute on."""

    model: str
    num_logical: int
    num_allowed: int
    """Logical cores that its affinity allows."""
    quota: float | None
    """Cores that the container's share of processor time amounts to; None for no limit."""
    flags: frozenset[str]
    """Instruction sets as Linux names them; empty elsewhere."""


def query_processor() -> Processor:
    """Ask the system about the processor."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", text, re.MULTILINE)
    num_logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_logical
    return Processor(
        processor_name(),
        num_logical,
        allowed,
        _read_quota(Path("/sys/fs/cgroup/cpu.max")),
        frozenset(flags.group(1).split() if flags else ()),
    )


def _read_quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def query_gpus() -> list[Gpu]:
    """Ask the NVIDIA driver; nothing without one. It starts no work on the GPU."""
    fields = "index,name,memory.total,memory.used,utilization.gpu,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in answer.strip().splitlines():
        index, name, *numbers = (part.strip() for part in line.split(","))
        gpus.append(Gpu(int(index), name, *(_number(number) for number in numbers)))
    return gpus


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # "[N/A]", as shares of a GPU report it


def query_torch_cuda() -> str:
    """CUDA version that the installed torch was built for, which it says in a file; empty for none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    version = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", version.read_text() if version.is_file() else "", re.MULTILINE)
    return found.group(1) if found else ""


def check_processor() -> Iterator[Finding]:
    """Report the processor's model and cores, and how many of them this process gets."""
    processor = query_processor()
    usable = min(float(processor.num_allowed), processor.quota or processor.num_allowed)
    limits = [f"{processor.num_allowed} of {processor.num_logical} cores by affinity"]
    if processor.quota is not None:
        limits.append(f"time of {processor.quota:.1f} cores by quota")
    yield Finding(
        group="Machine",
        name="processor",
        status="note" if usable < 2 else "ok",
        found=f"{processor.model}; {', '.join(limits)}",
        advice="The demo takes about 20 minutes on one core; give it two or more if you can." if usable < 2 else "",
    )


def check_memory() -> Iterator[Finding]:
    """Report how much memory there is and how much is free."""
    memory = psutil.virtual_memory()
    total_gib, free_gib = memory.total / 2**30, memory.available / 2**30
    is_enough = free_gib >= ENOUGH_MEMORY_GIB
    yield Finding(
        group="Machine",
        name="memory",
        status="ok" if is_enough else "note",
        found=f"{free_gib:.1f} of {total_gib:.1f} GiB are free",
        advice="" if is_enough else f"The demo needs about {ENOUGH_MEMORY_GIB:.0f} GiB; close other programs first.",
    )


def check_bf16() -> Iterator[Finding]:
    """Check whether the processor computes in bf16 in hardware, without which training on it is slow."""
    flags = query_processor().flags
    known = [flag for flag in BFLOAT16_FLAGS if flag in flags]
    if known:
        yield Finding(group="Machine", name="bf16", status="ok", found=f"in hardware ({', '.join(known)})")
    else:
        yield Finding(
            group="Machine",
            name="bf16",
            status="note",
            found="not in hardware, as far as can be told",
            advice="Models compute in float32 here; processors with bf16 are two to three times as fast.",
        )


def check_gpus() -> Iterator[Finding]:
    """Report every GPU, its memory, whether it is in use, and whether torch can use it."""
    gpus, cuda = query_gpus(), query_torch_cuda()
    if not gpus:
        yield Finding(group="Machine", name="GPU", status="ok", found="none; everything runs on the processor")
    for gpu in gpus:
        is_busy = gpu.used_mib > BUSY_SHARE * max(gpu.total_mib, 1.0) or gpu.busy_percent > 0
        bf16 = "bf16" if gpu.capability >= BF16_CAPABILITY else "no bf16"
        yield Finding(
            group="Machine",
            name=f"GPU {gpu.index}",
            status="note" if is_busy else "ok",
            found=f"{gpu.name}, {gpu.used_mib / 1024:.1f} of {gpu.total_mib / 1024:.1f} GiB taken, "
            f"{gpu.busy_percent:.0f} % busy, {bf16}",
            advice=f"It is in use; choose another with CUDA_VISIBLE_DEVICES, or wait: nvidia-smi -i {gpu.index}"
            if is_busy
            else "",
        )
    if gpus and not cuda:
        yield Finding(
            group="Machine",
            name="torch and GPU",
            status="note",
            found="this torch was built without CUDA, so the GPU is not used",
            advice="Install the CUDA build of the same version from https://download.pytorch.org/whl",
        )


class Threads(NamedTuple):
    """What torch and numba compute with."""

    pools: list[str]
    """OpenMP runtimes that both load."""
    layers: list[str]
    """Threading layers that numba can load, the one that it prefers first."""


def query_threads() -> Threads:
    """Ask a process that starts the threads of torch and numba.

    Raises:
        RuntimeError: torch or numba does not start.
    """
    command = [sys.executable, "-P", threads.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"torch or numba does not start: {last[0]}")
    return Threads(**json.loads(done.stdout))


def check_threads(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check thread counts against the cores, the OpenMP runtimes, and numba's threading layer."""
    allowed = query_processor().num_allowed
    settings = {name: environment[name] for name in THREAD_VARIABLES if name in environment}
    too_many = [name for name, value in settings.items() if not value.isdigit() or not 0 < int(value) <= allowed]
    yield Finding(
        group="Threads",
        name="settings",
        status="note" if too_many else "ok",
        found=", ".join(f"{name}={value}" for name, value in settings.items()) or f"none set; {allowed} threads each",
        advice=f"There are only {allowed} cores: unset {' '.join(too_many)}" if too_many else "",
    )
    pools, layers = query_threads()
    waits = environment.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    is_single = "1" in (environment.get("OMP_NUM_THREADS"), str(allowed))
    is_conflict = len(pools) > 1 and not waits and not is_single
    yield Finding(
        group="Threads",
        name="OpenMP",
        status="note" if is_conflict else "ok",
        found=", ".join(Path(pool).name for pool in pools) or "no runtime found",
        advice="Two pools on the same cores stall each other, up to ten times slower: export OMP_WAIT_POLICY=PASSIVE"
        if is_conflict
        else "",
    )
    has_safe_layer = layers != ["workqueue"]
    yield Finding(
        group="Threads",
        name="numba",
        status="ok" if has_safe_layer else "note",
        found=f"threading layer {layers[0]}",
        advice="" if has_safe_layer else "It must not be used from two threads at once; install libgomp1 (or libomp).",
    )
