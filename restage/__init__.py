"""Restage edits 3D scenes by text, and shows how well.

In Python: `restage.fit`, `restage.edit`, `restage.generate`, `restage.load`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from restage.run.limits import allowed_cores, num_usable_cores

__version__ = "0.1.0"
__all__ = ["Clip", "ClipEdit", "Edit", "Scene", "edit", "fit", "generate", "load"]

if TYPE_CHECKING:
    from restage.api import Clip, ClipEdit, Edit, Scene, edit, fit, generate, load


def __getattr__(name: str) -> Any:
    """Load the Python API at its first use: most of what starts here needs none of it."""
    if name in ("edit", "generate"):  # packages, which can be called
        return import_module(f"restage.{name}")
    if name in __all__:
        return getattr(import_module("restage.api"), name)
    raise AttributeError(f"module 'restage' has no attribute {name!r}")


# OpenMP reads these when torch loads it. By default its threads spin while they wait for each other: two pools, or one
# beside other busy processes, then take turns at doing nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
# Numba would prefer TBB wherever some other software has installed it, and so share no pool with torch.
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb workqueue")
if num_usable_cores() < len(allowed_cores()):  # OpenMP heeds affinity, but no container's quota
    os.environ.setdefault("OMP_NUM_THREADS", str(num_usable_cores()))
