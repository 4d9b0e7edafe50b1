"""How finely models compute: in bfloat16 where the hardware does so by itself, and without denormal numbers.

Weights stay as they are; only the operations under autocast change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from restage.run.environment import BFLOAT16_FLAGS

__all__ = ["bfloat16_autocast", "has_fast_bfloat16", "without_denormals"]

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


def bfloat16_autocast(device: torch.device, *, is_wanted: bool | None = None) -> torch.autocast:
    """Autocast to bfloat16.

    Args:
        device: Where the model is.
        is_wanted: Whether to; None for where the device computes in it by itself.
    """
    is_enabled = has_fast_bfloat16(device) if is_wanted is None else is_wanted
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_enabled)


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Within it, what is smaller than the least normal number (1.2e-38 in float32) counts as zero on the CPU.

    Afterwards it counts again, whatever was set before.

    Where an activation is far below zero, its gradient is such a number, and processors are slow over them: the
    backward pass of the trained autoencoder took six times as long (docs/log/2026-11-28-autoencoder.md). PyTorch's
    worker threads take this over from the thread that starts them, so enter it before the first of its operations.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
