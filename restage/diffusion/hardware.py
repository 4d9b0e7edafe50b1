"""How models use the machine: in bfloat16 where it computes in that natively, with freed memory kept."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch

from restage.run.environment import BFLOAT16_FLAGS

__all__ = ["bfloat16_autocast", "can_compile", "has_fast_bfloat16", "keep_freed_memory"]

CUDA_CAPABILITY = (8, 0)
"""NVIDIA's Ampere: the first with bfloat16; those before it emulate it."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; False where that is not known, as on Apple's.

    A processor that does not converts back and forth: one with AVX-512 but no bfloat16 took two to four times as long
    as in float32 (docs/log/2026-11-27-precision.md).
    """
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in BFLOAT16_FLAGS)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CUDA_CAPABILITY


def bfloat16_autocast(
    device: torch.device, *, is_wanted: bool | None = None, keeps_weights: bool = True
) -> torch.autocast:
    """Autocast to bfloat16; by default where the device computes in it natively.

    Weights that were cast are kept within the context, for layers that are called again, unless that is not wanted.
    """
    is_enabled = has_fast_bfloat16(device) if is_wanted is None else is_wanted
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_enabled, cache_enabled=keeps_weights)


def can_compile() -> bool:
    """Return whether `torch.compile` finds what it needs for this CPU: a C++ compiler and Python's headers."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    has_compiler = any(name and shutil.which(name) for name in names)
    return has_compiler and Path(sysconfig.get_path("include"), "Python.h").exists()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""
KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next tensors, where it would be given back to the system at once.

    Tensors of large batches have tens of MB. By itself glibc maps each anew, and the system clears its pages when they
    are touched: about a fifth of the time of a UNet call of 64 rows in float32. The process stays as large as it was at
    its largest.

    Only glibc can; the return value says whether it does so now.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(option, KEPT_BYTES) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])
