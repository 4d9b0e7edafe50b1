"""What a run was made with: machine, versions, commit. Written into `run.json` by `records.py`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["BFLOAT16_FLAGS", "git_commit", "machine", "processor_name", "versions"]

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""What processors of x86 and ARM that compute in bfloat16 say of themselves, by the names of Linux and of torch."""
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver on Linux describes each GPU."""
PACKAGES = ("restage", "torch", "numpy", "numba", "diffusers", "transformers", "safetensors", "pyarrow", "pillow")


def machine() -> dict[str, Any]:
    """Platform, Python, processor, number of cores, names of NVIDIA's GPUs, memory in GiB."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cpu_count": os.cpu_count(),
        "gpus": _gpu_names(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def processor_name() -> str:
    """The processor's model: whether it computes in bfloat16 decides in which precision models do."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model.group(1) if model else platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    """What NVIDIA's driver on Linux says of the GPUs, without starting anything; empty elsewhere."""
    texts = [path.read_text() for path in sorted(GPU_FOLDER.glob("*/information"))]
    found = [re.search(r"^Model:\s*(.+)", text, re.MULTILINE) for text in texts]
    return [model.group(1).strip() for model in found if model]


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_commit() -> str:
    """Commit of this code, with `+changes` if files differ from it; `unknown` without git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
