"""How finely models compute: in bfloat16 where the hardware does so natively.

Weights stay as they are; only the operations under autocast change.
"""

from __future__ import annotations

import torch

from restage.run.environment import BFLOAT16_FLAGS

__all__ = ["bfloat16_autocast", "has_fast_bfloat16"]

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
    """Autocast to bfloat16; by default where the device computes in it natively."""
    is_enabled = has_fast_bfloat16(device) if is_wanted is None else is_wanted
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_enabled)
