"""How the C library hands out memory for tensors on the CPU: what makes pictures in large batches asks for this."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""
KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have freed memory kept for the next tensors, where it would be given back to the system at once.

    Tensors of large batches have tens of MB. By itself glibc maps each anew, and the system clears its pages when they
    are touched: about a fifth of the time of a UNet call of 64 rows in float32. The process stays as large as it was at
    its largest.

    Returns:
        Whether the C library is glibc, and does so now.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(option, KEPT_BYTES) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])
